"""Taking a volume from the running container, in a child of PID 1 (tether/requests/worker.py).

A volume is mounted twice: its disk at a place of ours (/v/N), and this place inside the container.  The second one is
undone from inside, after chroot, so that a path that the container changes meanwhile cannot lead anywhere else.
"""

import errno
import os

from tether.faults import TetherError
from tether.kernel import files
from tether.kernel.syscalls import UMOUNT_NOFOLLOW, umount
from tether.rootfs.inside import open_inside
from tether.rootfs.volumes import VOLUMES

_BUSY = "end what uses it: a process whose working directory or open file is there"


def unmount_volume(root: int, path: bytes) -> None:
    """Unmounts the volume at `path` of the container whose root is open as `root`.  Raises TetherError."""
    shown = f"volume {os.fsdecode(path)}"
    handle = open_inside(root, path)
    device = os.fstat(handle).st_dev
    os.close(handle)
    place = place_of_device(files.read("/proc/self/mountinfo").decode("utf-8", "surrogateescape"), device)
    if place is None:
        raise TetherError(shown, "there is no volume at this path", errno.EINVAL)
    try:
        _unmount_inside(root, path)
        umount(place)
        _let_go(device)
    except OSError as error:
        number = error.errno or 0
        raise TetherError(shown, os.strerror(number), number, _BUSY if number == errno.EBUSY else "") from error


def place_of_device(mountinfo: str, device: int) -> str | None:
    """Where we have mounted the disk with this number (proc(5), mountinfo: the third and the fifth column)."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mountinfo.splitlines():
        words = line.split()
        if words[2] == wanted and words[4].startswith(f"{VOLUMES}/"):
            return words[4]
    return None


def _let_go(device: int) -> None:
    """Has the kernel give up a SCSI disk, which empties its cache, before it is pulled; others have no such file."""
    entry = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    try:
        handle = os.open(f"{entry}/device/delete", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(handle, b"1")
    finally:
        os.close(handle)


def _unmount_inside(root: int, path: bytes) -> None:
    ours = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(root)
    os.chroot(".")
    try:
        umount(os.fsdecode(b"/" + path.strip(b"/")), UMOUNT_NOFOLLOW)
    finally:
        os.fchdir(ours)
        os.chroot(".")
        os.close(ours)
