"""A set of named files to read an image from: a folder, or a tar archive without unpacking it.

Names are relative, with slashes.  What they come from may be hostile, so a name never leads out of the folder, and the
number of files in an archive is bounded.
"""

from __future__ import annotations

import bz2
import lzma
import os
import posixpath
import stat
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from imagebuild.errors import LayerError, SourceError
from imagebuild.jsoncheck import MAX_DOCUMENT
from imagebuild.layer.decompress import Compression, decompress

CHUNK = 256 << 10  # bytes handed on at once: large enough that Python's part of the work does not show
_MAX_MEMBERS = 100_000  # an archive has about three files per layer; more only costs memory
_MAX_LINKS = 8  # symbolic links to follow in an archive; docker save writes one
_STEP = "read image"


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
            raise SourceError(_STEP, self.spelled, f"{name} has {size} bytes, and {limit} are allowed")
        return b"".join(self.chunks(name))

    def missing(self, name: str) -> SourceError:
        """The error for a file that ought to be there."""
        return SourceError(_STEP, self.spelled, f"there is no {name[:200]!r} in it", "is it complete, and an image?")


class FolderBundle(Bundle):
    """The files of a folder."""

    def __init__(self, folder: Path, spelled: str) -> None:
        super().__init__(spelled)
        self._folder = folder
        if not folder.is_dir():
            raise SourceError(_STEP, spelled, f"there is no folder {folder}")

    def _open(self, name: str) -> int | None:
        if name.startswith("/") or ".." in name.split("/"):
            return None
        try:
            # O_NONBLOCK: opening a FIFO that someone put there must not hang.
            fd = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SourceError(_STEP, self.spelled, f"{name}: {error.strerror}") from error
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


@dataclass(frozen=True)
class _Member:
    offset: int
    size: int


class TarBundle(Bundle):
    """The files of a tar archive in a seekable file, which is closed with the bundle.  For several threads at once."""

    def __init__(self, file: IO[bytes], spelled: str) -> None:
        super().__init__(spelled)
        self._file = file
        self._members: dict[str, _Member] = {}
        self._links: dict[str, str] = {}
        try:
            self._index()
        except (tarfile.TarError, ValueError, EOFError) as error:
            self.close()
            raise SourceError(_STEP, spelled, f"is no tar archive: {error}") from error

    def _index(self) -> None:
        with tarfile.open(fileobj=self._file, mode="r:") as archive:
            for count, member in enumerate(archive):
                if count >= _MAX_MEMBERS:
                    raise tarfile.TarError(f"it has more than {_MAX_MEMBERS} files")
                name = posixpath.normpath(member.name)
                if member.isreg() and not member.issparse():
                    self._members[name] = _Member(member.offset_data, member.size)
                elif member.issym():
                    self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                elif member.islnk():
                    self._links[name] = posixpath.normpath(member.linkname)

    def names(self) -> Iterable[str]:
        """All names of files."""
        return self._members.keys() | self._links.keys()

    def _find(self, name: str) -> _Member | None:
        name = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            if name not in self._links:
                break
            name = self._links[name]
        return self._members.get(name)

    def size(self, name: str) -> int | None:
        member = self._find(name)
        return member.size if member else None

    def chunks(self, name: str) -> Iterator[bytes]:
        member = self._find(name)
        if member is None:
            raise self.missing(name)
        at, end = member.offset, member.offset + member.size
        while at < end:
            chunk = os.pread(self._file.fileno(), min(CHUNK, end - at), at)
            if not chunk:
                raise SourceError(_STEP, self.spelled, f"the archive ends within {name[:200]!r}", "copy it again")
            at += len(chunk)
            yield chunk

    def close(self) -> None:
        self._file.close()


def open_archive(file: IO[bytes], spelled: str, spool: Path) -> TarBundle:
    """Read ``file`` as a tar archive, compressed or not, seekable or not; it is closed with the bundle.

    What cannot be read in place is first copied to a nameless file in the folder ``spool``.
    """
    unpacked = _unpacked(file, spelled)
    if unpacked is None:
        return TarBundle(file, spelled)
    fd = os.open(spool, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    copy = os.fdopen(fd, "w+b")
    try:
        for chunk in unpacked:
            copy.write(chunk)
        copy.seek(0)
        return TarBundle(copy, spelled)
    except LayerError as error:
        copy.close()
        raise SourceError(_STEP, spelled, error.cause, error.remedy) from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        copy.close()
        raise SourceError(_STEP, spelled, str(error)) from error
    finally:
        file.close()


def _unpacked(file: IO[bytes], spelled: str) -> Iterator[bytes] | None:
    """The content of ``file`` as a stream, or None if it can be read in place."""
    head = file.read(6)
    if not head:
        raise SourceError(_STEP, spelled, "is empty")
    if file.seekable():
        file.seek(0)
        chunks = iter(lambda: file.read(CHUNK), b"")
    else:
        chunks = _after(head, file)
    if head.startswith(b"\xfd7zXZ\0"):
        return _each(lzma.LZMADecompressor(), chunks)
    if head.startswith(b"BZh"):
        return _each(bz2.BZ2Decompressor(), chunks)
    if file.seekable() and not head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
        return None
    return decompress(chunks, Compression.AUTO)


def _after(head: bytes, file: IO[bytes]) -> Iterator[bytes]:
    yield head
    while chunk := file.read(CHUNK):
        yield chunk


def _each(decompressor: lzma.LZMADecompressor | bz2.BZ2Decompressor, chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        if decompressor.eof:
            return
        yield decompressor.decompress(chunk)
    if not decompressor.eof:
        raise EOFError("the compressed archive ends too early")
