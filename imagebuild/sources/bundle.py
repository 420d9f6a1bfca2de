"""A set of named files to read an image from: a folder, or a tar archive (tar_bundle.py).

Names are relative, with slashes.  What they come from may be hostile, so a name never leads out of the folder.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from imagebuild.errors import SourceError
from imagebuild.jsoncheck import MAX_DOCUMENT

CHUNK = 256 << 10  # bytes handed on at once: large enough that Python's part of the work does not show
STEP = "read image"


class Bundle(ABC):
    """Files by name."""

    def __init__(self, spelled: str) -> None:
        self.spelled = spelled  # what the user called it, for messages

    @abstractmethod
    def size(self, name: str) -> int | None:
        """The size of a file in bytes, None if there is none of that name."""

    @abstractmethod
    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a file; SourceError if there is none."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is open."""

    def read(self, name: str, limit: int = MAX_DOCUMENT) -> bytes:
        """A small file as a whole; SourceError if it is missing or too large."""
        size = self.size(name)
        if size is None:
            raise self.missing(name)
        if size > limit:
            raise SourceError(STEP, self.spelled, f"{name} has {size} bytes, and {limit} are allowed")
        return b"".join(self.chunks(name))

    def missing(self, name: str) -> SourceError:
        """The error for a file that ought to be there."""
        return SourceError(STEP, self.spelled, f"there is no {name[:200]!r} in it", "is it complete, and an image?")


class FolderBundle(Bundle):
    """The files of a folder."""

    def __init__(self, folder: Path, spelled: str) -> None:
        super().__init__(spelled)
        self._folder = folder
        if not folder.is_dir():
            raise SourceError(STEP, spelled, f"there is no folder {folder}")

    def _open(self, name: str) -> int | None:
        if name.startswith("/") or ".." in name.split("/"):
            return None
        try:
            # O_NONBLOCK: opening a FIFO that someone put there must not hang.
            fd = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SourceError(STEP, self.spelled, f"{name}: {error.strerror}") from error
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        return None

    def size(self, name: str) -> int | None:
        fd = self._open(name)
        if fd is None:
            return None
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def chunks(self, name: str) -> Iterator[bytes]:
        fd = self._open(name)
        if fd is None:
            raise self.missing(name)
        with os.fdopen(fd, "rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def close(self) -> None:
        pass
