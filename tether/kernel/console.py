"""The console: one line when something goes wrong, nothing otherwise (unless the kernel was given tether.debug)."""

import fcntl
import os
import struct
from time import monotonic, sleep

CONSOLE = 2  # standard error of PID 1 is /dev/console, and stays it
DRAIN_S = 3.0  # a host that is busy reads late; one that does not read at all must not keep the VM from its end
_LOOK_AGAIN_S = 0.005
_TIOCSERGETLSR, _TIOCSER_TEMT = 0x5459, 1  # asm-generic/ioctls.h: whether a serial line has sent everything


def say(line: str) -> None:
    """Prints one line.  A console that takes nothing is no reason for PID 1 to stop: there is nobody left to tell."""
    try:
        os.write(CONSOLE, line.encode("utf-8", "backslashreplace") + b"\r\n")
    except OSError:
        return


def drain() -> None:
    """Waits until what was said has left the VM: the kernel only takes it in, and a power-off does not wait for it.

    Other consoles than a serial line say nothing about that, and are not waited for.
    """
    deadline = monotonic() + DRAIN_S
    while monotonic() < deadline:
        try:
            state = fcntl.ioctl(CONSOLE, _TIOCSERGETLSR, bytes(4))
        except OSError:
            return
        if struct.unpack("=I", state)[0] & _TIOCSER_TEMT:
            return
        sleep(_LOOK_AGAIN_S)
