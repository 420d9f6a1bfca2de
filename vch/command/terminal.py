"""The user's terminal: its size, raw mode, and getting it back as it was, whatever happens."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
import tty
from types import TracebackType

from tether.spec import Terminal

_WINSIZE = struct.Struct("HHHH")  # struct winsize, ioctl_tty(2)


def size(*fds: int) -> Terminal | None:
    """Rows and columns of the first of `fds` that is a terminal and knows them."""
    for fd in fds:
        try:
            rows, columns, _, _ = _WINSIZE.unpack(fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(_WINSIZE.size)))
        except OSError:
            continue
        if rows and columns:
            return Terminal(rows=rows, columns=columns)
    return None


class RawMode:
    """Every key goes to the container, Ctrl-C too, while the block lasts.  Does nothing where there is no terminal."""

    def __init__(self, fd: int, wanted: bool) -> None:
        self._fd = fd
        self._saved = termios.tcgetattr(fd) if wanted and os.isatty(fd) else None

    def __enter__(self) -> RawMode:
        if self._saved is not None:
            tty.setraw(self._fd, termios.TCSANOW)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saved is not None:
            with contextlib.suppress(termios.error):  # the terminal itself has gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
