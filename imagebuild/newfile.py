"""A file that appears under its name only when it is complete and on the disk."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import AbstractContextManager
from pathlib import Path

from imagebuild.files import TEMPORARY_SUFFIX, explained, sync_file

#: What open(2) says where a file system has no nameless files.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


class NewFile:
    """Context manager: write to `fd`, then `commit`; without it nothing is left.

    The file has no name until then (O_TMPFILE), so even kill -9 leaves nothing behind.  Where the file system cannot do
    that, it has the name `.NAME.XXXX.part` beside the destination.  Every `OSError` leaves as a `StoreError`.
    """

    def __init__(self, destination: Path, subject: str, *, output: bool = False) -> None:
        """`output`: it is where the user wants it, and not in the store."""
        self.fd = -1
        self._output = output
        self._destination = destination
        self._subject = subject
        self._name: Path | None = None

    def __enter__(self) -> NewFile:
        folder = self._destination.parent
        flags = os.O_RDWR | os.O_CLOEXEC
        with self._explained():
            try:
                self.fd = os.open(folder, flags | os.O_TMPFILE, 0o644)
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
                self._name = self._unused_name()
                self.fd = os.open(self._name, flags | os.O_CREAT | os.O_EXCL, 0o644)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        if self._name is not None:
            self._name.unlink(missing_ok=True)

    def pwritev(self, buffers: list[bytes | memoryview], offset: int) -> int:
        """As `os.pwritev`."""
        with self._explained():
            return os.pwritev(self.fd, buffers, offset)

    def write_all(self, data: bytes, offset: int) -> None:
        """Write *data*, however often the kernel stops halfway."""
        while data:
            written = self.pwritev([data], offset)
            data, offset = data[written:], offset + written

    def read(self, size: int, offset: int) -> bytes:
        """*size* bytes of what was written."""
        with self._explained():
            return os.pread(self.fd, size, offset)

    def data_after(self, offset: int) -> int:
        """Where the next byte that is in no hole is, at *offset* or behind it; the file's end if there is none."""
        with self._explained():
            try:
                return os.lseek(self.fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return os.fstat(self.fd).st_size

    def truncate(self, size: int) -> None:
        """Make the file *size* bytes long."""
        with self._explained():
            os.ftruncate(self.fd, size)

    def commit(self) -> None:
        """Make the content durable, then give it its name, replacing what had it."""
        with self._explained():
            os.fsync(self.fd)
            if self._name is None:
                name = self._unused_name()
                # linkat() through /proc is the one way to name a nameless file without privileges; Python calls it
                # rather than link(), which would link the symbolic link, only when given a directory.
                os.link(f"/proc/self/fd/{self.fd}", name, src_dir_fd=self.fd, follow_symlinks=True)
                self._name = name
            os.rename(self._name, self._destination)
            self._name = None
            sync_file(self._destination.parent)

    def _unused_name(self) -> Path:
        return self._destination.with_name(f".{self._destination.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")

    def _explained(self) -> AbstractContextManager[None]:
        return explained("write", f"{self._destination} ({self._subject})", output=self._output)
