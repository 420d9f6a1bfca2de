"""Where output goes: any file descriptor of the user's, written to without ever blocking and without changing it.

O_NONBLOCK belongs to the open file, which the user's shell and other programs share: set on their terminal or pipe it
would break them, and stay when we are killed.  So each kind of descriptor has its own way:

    regular file       written to directly: it does not block for longer than the disk takes
    pipe, terminal     opened once more through /proc, non-blocking: an open file of our own
    socket             send(2) with MSG_DONTWAIT
    none of these      at most PIPE_BUF bytes once poll says so: that much never blocks (pipe(7))
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from typing import Protocol

_BROKEN = frozenset((errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.ENXIO, errno.EBADF))


class SinkClosedError(Exception):
    """Nobody reads what we write any more (EPIPE, or a terminal that hung up)."""


class Sink(Protocol):
    """Takes bytes."""

    fd: int
    """To be polled for writing; -1 if there is no need to."""

    def write(self, data: memoryview) -> int:
        """Writes what fits.  Raises BlockingIOError if nothing does, SinkClosedError, or OSError."""

    def close(self) -> None:
        """Gives back what was opened; the user's descriptor stays as it is."""


class FdSink:
    """A descriptor of ours, in the mode that `open_sink` found for it."""

    def __init__(self, fd: int, *, polled: bool, limit: int = 0) -> None:
        """Owns `fd`.  `limit`: bytes of one write, 0 for any number."""
        self._fd, self._limit = fd, limit
        self.fd = fd if polled else -1

    def write(self, data: memoryview) -> int:
        if self._limit:
            if not select.select([], [self._fd], [], 0)[1]:
                raise BlockingIOError
            data = data[: self._limit]
        try:
            return os.write(self._fd, data)
        except OSError as error:
            if error.errno in _BROKEN:
                raise SinkClosedError(error.strerror) from error
            raise

    def close(self) -> None:
        os.close(self._fd)


class SocketSink:
    """A connected socket."""

    def __init__(self, fd: int) -> None:
        """Owns `fd`."""
        self._socket = socket.socket(fileno=fd)
        self.fd = fd

    def write(self, data: memoryview) -> int:
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno in _BROKEN:
                raise SinkClosedError(error.strerror) from error
            raise

    def close(self) -> None:
        self._socket.close()


class Collector:
    """Keeps what it is given, up to `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.fd = -1
        self.content = bytearray()
        self.truncated = False
        self._limit = limit

    def write(self, data: memoryview) -> int:
        kept = data[: self._limit - len(self.content)]
        self.content += kept
        self.truncated = self.truncated or len(kept) < len(data)
        return len(data)

    def close(self) -> None:
        """There is nothing to give back."""


def open_sink(fd: int) -> Sink:
    """The way to write to `fd`.  Raises SinkClosedError if it is not open."""
    try:
        kind = os.fstat(fd).st_mode
    except OSError as error:
        raise SinkClosedError(error.strerror) from error
    if stat.S_ISSOCK(kind):
        return SocketSink(os.dup(fd))
    if stat.S_ISREG(kind) or (stat.S_ISCHR(kind) and not os.isatty(fd)):
        return FdSink(os.dup(fd), polled=False)
    try:
        again = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # another user's pipe or terminal, or no /proc
        return FdSink(os.dup(fd), polled=True, limit=select.PIPE_BUF)
    return FdSink(again, polled=True)
