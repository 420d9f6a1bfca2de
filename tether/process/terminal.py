"""Pseudo terminals of the container: pty(7), ioctl_tty(2).

They come from the container's own devpts, so that ttyname(3) works inside; and by a descriptor of it that was opened
before any process of the container ran, so that nothing mounted over /dev/pts later is ever opened by PID 1.
"""

import fcntl
import os
import struct

from tether.rootfs.inside import open_inside
from tether.spec import Terminal

_TIOCSWINSZ = 0x5414
_TIOCSCTTY = 0x540E
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
MAX_SIDE = 0xFFFF  # struct winsize has 16 bits for each
END_OF_FILE = b"\x04"  # VEOF as the kernel presets it: what a person types to end the input


def open_devpts(root: int) -> int:
    """A descriptor of the container's devpts."""
    return open_inside(root, b"/dev/pts", os.O_PATH | os.O_DIRECTORY)


def open_terminal(devpts: int, size: Terminal) -> tuple[int, int]:
    """(our end, non-blocking; the session's end) of a new terminal."""
    ours = os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=devpts)
    try:
        fcntl.ioctl(ours, _TIOCSPTLCK, struct.pack("i", 0))
        theirs = open_other_end(ours)
        resize(ours, size)
    except OSError:
        os.close(ours)
        raise
    return ours, theirs


def open_other_end(terminal: int) -> int:
    """The session's end of the terminal whose other end is ours."""
    return fcntl.ioctl(terminal, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def resize(terminal: int, size: Terminal) -> None:
    """Sets the size; the kernel tells the foreground process group by SIGWINCH."""
    rows, columns = (max(0, min(side, MAX_SIDE)) for side in (size.rows, size.columns))
    fcntl.ioctl(terminal, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def take_terminal() -> None:
    """Makes standard input the controlling terminal of the calling process, which leads a new session."""
    fcntl.ioctl(0, _TIOCSCTTY, 0)
