"""A file that appears under its name only when it is complete and on the disk."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from types import TracebackType

from imagebuild.errors import StoreError

_REMEDIES = {
    errno.ENOSPC: "free some space, `imagebuild gc` may help, and try again",
    errno.EDQUOT: "your quota is used up: free some space and try again",
    errno.EFBIG: "the file system does not take files this large: put the store on another",
    errno.EACCES: "make the folder writable for you, or choose another store",
    errno.EPERM: "make the folder writable for you, or choose another store",
    errno.EROFS: "the folder is on a read-only file system: choose another store",
    errno.ENOENT: "create the folder first",
    errno.EIO: "the disk reports errors: see the kernel's log",
}
#: What open(2) says where a file system has no nameless files.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


class NewFile:
    """Context manager: write to `fd`, then `commit`; without it nothing is left.

    The file has no name until then (O_TMPFILE), so even kill -9 leaves nothing behind.  Where the file system cannot do
    that, it has the name `.NAME.XXXX.part` beside the destination.  Every `OSError` leaves as a `StoreError`.
    """

    def __init__(self, destination: Path, subject: str) -> None:
        self.fd = -1
        self._destination = destination
        self._subject = subject
        self._name: Path | None = None

    def __enter__(self) -> NewFile:
        folder = self._destination.parent
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            try:
                self.fd = os.open(folder, flags | os.O_TMPFILE, 0o644)
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
                self._name = self._unused_name()
                self.fd = os.open(self._name, flags | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError as error:
            raise self._explained(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)
        if self._name is not None:
            self._name.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise self._explained(error) from error

    def commit(self) -> None:
        """Make the content durable, then give it its name, replacing what had it."""
        os.fsync(self.fd)
        if self._name is None:
            name = self._unused_name()
            # linkat() through /proc is the one way to name a nameless file without privileges.
            os.link(f"/proc/self/fd/{self.fd}", name, src_dir_fd=self.fd, follow_symlinks=True)
            self._name = name
        os.rename(self._name, self._destination)
        self._name = None
        folder = os.open(self._destination.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _unused_name(self) -> Path:
        return self._destination.with_name(f".{self._destination.name}.{secrets.token_hex(4)}.part")

    def _explained(self, error: OSError) -> StoreError:
        remedy = _REMEDIES.get(error.errno or 0, "")
        return StoreError("write", f"{self._destination} ({self._subject})", error.strerror or str(error), remedy)
