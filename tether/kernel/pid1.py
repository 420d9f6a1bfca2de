"""What is different in PID 1: its own filesystems, signals and limits.

The kernel drops every signal to PID 1 whose action is the default, and panics when PID 1 ends.  Python comes with a
handler for SIGINT that raises KeyboardInterrupt anywhere, and with SIGPIPE and SIGXFSZ ignored, which children would
inherit (signal(7), execve(2)).  Those two go back to the default, SIGINT gets a handler that does nothing but note it.
"""

import errno
import os

from tether.kernel.syscalls import (
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    RB_DISABLE_CAD,
    RLIMIT_NOFILE,
    mount,
    reboot,
    set_limit,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import FrameType
else:
    import _signal

# Only what PID 1 itself needs; the container gets filesystems of its own (tether/rootfs/furnish.py).
OWN_MOUNTS = (
    ("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC),
    ("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC),
    ("devtmpfs", "/dev", MS_NOSUID | MS_NOEXEC),
)

OPEN_FILES = 1048576  # what Docker's containers get; the kernel's own default of 1024 is of another time

CHILD = _signal.SIGCHLD
POWER_BUTTON = 38  # CONFIG_ACPI_TINY_POWER_BUTTON_SIGNAL: the kernel's own default, systemd's "power off"
POWER_BUTTON_PRESSED = "the power button was pressed"
# What asks the VM to end, and what it means.
STOPPING = {
    int(_signal.SIGINT): "Ctrl-Alt-Del was pressed",
    int(_signal.SIGTERM): "a process in it asked PID 1 to stop",
    int(_signal.SIGPWR): "the power is failing",
    POWER_BUTTON: POWER_BUTTON_PRESSED,
}


def mount_own() -> None:
    """Mounts the kernel's filesystems in PID 1's root.  One that is there already (devtmpfs) is as good."""
    for kind, target, flags in OWN_MOUNTS:
        try:
            mount(kind, target, kind, flags)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise


def behave_as_init() -> int:
    """Sets signals and limits; gives a descriptor from which the numbers of signals that arrive can be read."""
    arrived, wake = os.pipe()
    os.set_blocking(arrived, False)
    os.set_blocking(wake, False)
    for number in (CHILD, *STOPPING):
        _signal.signal(number, _note)
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)
    _signal.set_wakeup_fd(wake, warn_on_full_buffer=False)  # full: it is readable, and that is all that matters
    reboot(RB_DISABLE_CAD)  # Ctrl-Alt-Del becomes SIGINT instead of a reset
    set_limit(RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
    return arrived


def kernel_release() -> str:
    """What `uname -r` says."""
    return os.uname().release


def _note(_number: int, _frame: "FrameType | None") -> None:
    """The wake-up descriptor has the number already; a handler must exist for that."""
