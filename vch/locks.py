"""Names that only one machine may have at a time.

One file holds all of them: each name is a byte of it, far out, that its owner has locked (F_OFD_SETLK, fcntl(2)).  The
kernel takes the lock back when its owner dies, however it dies, and no file per name is ever left behind.  Two names
share a byte with a probability of 2**-62.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from pathlib import Path
from types import TracebackType

from vch.errors import HostError

_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: type, whence, start, length, pid
_SPAN = 1 << 62  # offsets of files are 63 bits


class NameLock:
    """Holds a name until it is released or this process ends; a context manager."""

    def __init__(self, folder: Path, kind: str, name: str) -> None:
        """`kind` separates name spaces ("container", "volume").  Raises HostError if somebody has the name."""
        path = folder / "names.lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError("lock name", str(path), error.strerror or str(error)) from error
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _place(kind, name), 1, 0))
        except OSError as error:
            os.close(self._fd)
            if isinstance(error, (BlockingIOError, PermissionError)):  # fcntl(2): EAGAIN or EACCES
                remedy = "wait for it to end, or choose another name"
                raise HostError("", f'the {kind} name "{name}"', "already in use", remedy) from error
            raise HostError("lock name", str(path), error.strerror or str(error)) from error

    def release(self) -> None:
        """Gives the name back; harmless when it is given back already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> NameLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _place(kind: str, name: str) -> int:
    digest = hashlib.sha256(f"{kind}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % _SPAN
