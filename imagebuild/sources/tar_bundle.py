"""The named files of a tar archive, read where they are, without unpacking it; their number is bounded."""

from __future__ import annotations

import bz2
import lzma
import os
import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from imagebuild.errors import LayerError, SourceError
from imagebuild.layer.decompress import Compression, decompress
from imagebuild.sources.bundle import CHUNK, STEP, Bundle

_MAX_MEMBERS = 100_000  # an archive has about three files per layer; more only costs memory
_MAX_LINKS = 8  # symbolic links to follow in an archive; docker save writes one


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
            raise SourceError(STEP, spelled, f"is no tar archive: {error}") from error

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
                raise SourceError(STEP, self.spelled, f"the archive ends within {name[:200]!r}", "copy it again")
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
        raise SourceError(STEP, spelled, error.cause, error.remedy) from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        copy.close()
        raise SourceError(STEP, spelled, str(error)) from error
    finally:
        file.close()


def _unpacked(file: IO[bytes], spelled: str) -> Iterator[bytes] | None:
    """The content of ``file`` as a stream, or None if it can be read in place."""
    head = file.read(6)
    if not head:
        raise SourceError(STEP, spelled, "is empty")
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
