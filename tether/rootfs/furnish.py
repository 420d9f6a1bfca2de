"""What a container finds in /proc, /sys and /dev, as Docker gives it.

Docker hides or write-protects parts of /proc and /sys (MaskedPaths, ReadonlyPaths) because its containers share a
kernel with others.  Here the kernel is the container's own and the VM is the boundary, so nothing is masked: a
container may change every setting of its kernel, and can harm nobody but itself.

But one file is write-protected, where the kernel has it: who writes to /sys/power/state puts the machine to sleep, for
which any root suffices, without a capability.  Nothing here would ever wake it, and PID 1 sleeps too.
"""

import os
import stat

from tether.kernel.syscalls import MNT_DETACH, MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT, umount
from tether.rootfs.inside import Mount, by_handle, mount_file, mount_folder, open_inside

_STRICT = MS_NOSUID | MS_NODEV | MS_NOEXEC
TTY_GROUP = 5  # "tty" of every distribution; devpts wants the number

PROC = Mount(kind="proc", path=b"/proc", flags=_STRICT)
MOUNTS = (
    PROC,
    Mount(kind="sysfs", path=b"/sys", flags=_STRICT),
    Mount(kind="cgroup2", path=b"/sys/fs/cgroup", flags=_STRICT),
    Mount(kind="tmpfs", path=b"/dev", flags=MS_NOSUID, options="mode=0755,size=64m"),
    Mount(kind="devpts", path=b"/dev/pts", flags=MS_NOSUID | MS_NOEXEC,
          options=f"newinstance,ptmxmode=0666,mode=0620,gid={TTY_GROUP}"),
    Mount(kind="tmpfs", path=b"/dev/shm", flags=_STRICT, options="mode=1777,size=64m"),
    Mount(kind="mqueue", path=b"/dev/mqueue", flags=_STRICT),
)

# Of a kernel that can suspend; the pico kernel cannot, and has no such file.
SLEEP = "/sys/power/state"

# name, major, minor: the kernel's Documentation/admin-guide/devices.txt
DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
DEVICE_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
)


def furnish(root: int) -> None:
    """Mounts the kernel's filesystems inside `root` and fills /dev."""
    for item in MOUNTS:
        mount_folder(root, item)
    if os.path.exists(SLEEP):
        forbid_sleep(root)
    folder = open_inside(root, b"/dev")
    try:
        for name, major, minor in DEVICES:
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=folder)
            os.chmod(f"{by_handle(folder)}/{name}", 0o666)  # mknod's mode went through the umask
        for name, target in DEVICE_LINKS:
            os.symlink(target, name, dir_fd=folder)
    finally:
        os.close(folder)


def forbid_sleep(root: int) -> None:
    """Write-protects what suspends the machine, also for processes that need no permission to write a file."""
    item = Mount(path=SLEEP.encode(), source=SLEEP, flags=MS_BIND)
    mount_file(root, item)
    mount_file(root, item.but(flags=MS_BIND | MS_REMOUNT | MS_RDONLY | _STRICT))


def give_console(root: int, terminal: int) -> None:
    """Makes the terminal that is open as `terminal` the container's /dev/console."""
    mount_file(root, Mount(path=b"/dev/console", source=by_handle(terminal), flags=MS_BIND))


def take_console(root: int) -> None:
    """Takes away what `give_console` has given."""
    console = open_inside(root, b"/dev/console")
    try:
        umount(by_handle(console), MNT_DETACH)
    finally:
        os.close(console)
