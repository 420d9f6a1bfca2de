"""Reads EROFS images as `erofs_writer` makes them: names, attributes, data.  For the store's own files.

It follows the format, not the writer's habits, except that there is no compression and that blocks have 4 KiB.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagebuild.errors import StoreError
from imagebuild.files import explained
from imagebuild.layer import erofs
from imagebuild.layer.entry import Entry, Kind, Segment
from imagebuild.layer.erofs import BLOCK
from imagebuild.layer.tree import OPAQUE_XATTR

_PIECE = 1 << 20
_KINDS = {bits: kind for kind, bits in erofs.FILE_TYPE_BITS.items()}
_TYPE_MASK = 0o170000


@dataclass(frozen=True)
class Inode:
    """One file of an image."""

    #: Byte offset / 32; the same file has the same number whatever its name.
    nid: int
    #: As a tar archive would have it, without a name.
    entry: Entry
    nlink: int
    #: Bytes of data, a directory's and a link's too.
    size: int
    layout: int
    #: Block address or chunk format, and the offset of what follows inode and attributes.
    union: int
    follows: int

    @property
    def is_directory(self) -> bool:
        return self.entry.kind is Kind.DIRECTORY

    @property
    def is_whiteout(self) -> bool:
        """Whether overlayfs takes it for "nothing here, nor below"."""
        return self.entry.kind is Kind.CHAR and not self.entry.major and not self.entry.minor

    @property
    def is_opaque(self) -> bool:
        """Whether overlayfs shows nothing from below in this directory."""
        return self.entry.xattrs.get(OPAQUE_XATTR) == b"y"


class ErofsReader:
    """An image, mapped into memory.  Use as a context manager."""

    def __init__(self, path: Path) -> None:
        with explained("read the image", str(path)), open(path, "rb") as file:
            if path.stat().st_size < BLOCK:
                raise StoreError("read the image", str(path), "it is empty", "remove it and pull again")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        fields = erofs.SUPERBLOCK.unpack_from(self._map, erofs.SUPERBLOCK_OFFSET)
        if fields[0] != erofs.MAGIC or fields[3] != erofs.BLOCK_BITS:
            self._map.close()
            raise StoreError("read the image", str(path), "it is no EROFS image", "remove it and pull again")
        self._root_nid, self._meta, self._xattrs = fields[5], fields[10] * BLOCK, fields[11] * BLOCK
        self.uuid: bytes = fields[12]

    def __enter__(self) -> ErofsReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()

    def root(self) -> Inode:
        """The root directory."""
        return self.inode(self._root_nid)

    def inode(self, nid: int) -> Inode:
        """The file with this number."""
        at = self._meta + nid * erofs.SLOT
        (form,) = struct.unpack_from("<H", self._map, at)
        if form & 1:
            _, units, mode, _, size, union, _, uid, gid, mtime, mtime_ns, nlink, _, _ = erofs.EXTENDED.unpack_from(
                self._map, at
            )
            mtime -= (mtime >> 63) << 64
            follows = at + erofs.EXTENDED_SIZE
        else:
            _, units, mode, nlink, size, _, union, _, uid, gid, _ = erofs.COMPACT.unpack_from(self._map, at)
            mtime, mtime_ns = struct.unpack_from("<qI", self._map, erofs.SUPERBLOCK_OFFSET + 24)
            follows = at + erofs.COMPACT_SIZE
        xattrs = self._read_xattrs(follows, units) if units else {}
        follows += erofs.XATTR_HEADER.size + 4 * (units - 1) if units else 0
        kind = _KINDS[mode & _TYPE_MASK]
        major = minor = 0
        if kind in (Kind.CHAR, Kind.BLOCK):
            major, minor = union >> 8 & 0xFFF, union & 0xFF | union >> 12 & 0xFFF00
        layout = form >> 1 & 7
        link = self._whole(size, layout, union, follows) if kind is Kind.SYMLINK else b""
        entry = Entry(
            b"", kind, mode & 0o7777, uid, gid, mtime, mtime_ns, size if kind is Kind.REGULAR else 0, link,
            major, minor, xattrs, None,
        )  # fmt: skip
        if kind is Kind.REGULAR and layout == erofs.LAYOUT_CHUNKS:
            entry = entry._replace(segments=tuple(self._segments(size, union, follows)))
        return Inode(nid, entry, nlink, size, layout, union, follows)

    def children(self, directory: Inode) -> dict[bytes, int]:
        """The numbers of the files in *directory* by their names, without ``.`` and ``..``."""
        found: dict[bytes, int] = {}
        data = self._whole(directory.size, directory.layout, directory.union, directory.follows)
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            count = struct.unpack_from("<H", block, 8)[0] // erofs.DIRENT_SIZE
            starts = [struct.unpack_from("<QH", block, at * erofs.DIRENT_SIZE) for at in range(count)]
            ends = [offset for _, offset in starts[1:]] + [len(block)]
            for (nid, offset), end in zip(starts, ends, strict=True):
                found[block[offset:end].split(b"\0", 1)[0]] = nid
        found.pop(b".", None)
        found.pop(b"..", None)
        return found

    def data(self, file: Inode) -> Iterator[memoryview]:
        """What a regular file holds; of a sparse one, its segments one after the other."""
        segments = file.entry.segments
        for offset, length in (Segment(0, file.size),) if segments is None else segments:
            yield from self._read(file, offset, length)

    def _read(self, file: Inode, offset: int, length: int) -> Iterator[memoryview]:
        """A run of bytes of a file: all in blocks one after the other, or in the inline tail."""
        if file.layout == erofs.LAYOUT_CHUNKS:
            chunk = BLOCK << (file.union & 31)
            at = self._chunk_block(file.follows, offset // chunk) * BLOCK + offset % chunk
            yield from self._pieces(at, length)
            return
        whole = file.size & -BLOCK if file.layout == erofs.LAYOUT_INLINE else file.size
        yield from self._pieces(file.union * BLOCK, whole)
        yield from self._pieces(file.follows, length - whole)

    def _pieces(self, at: int, length: int) -> Iterator[memoryview]:
        while length > 0:
            size = min(length, _PIECE)
            yield memoryview(self._map[at : at + size])
            at += size
            length -= size

    def _whole(self, size: int, layout: int, block: int, follows: int) -> bytes:
        """The data of a directory or link."""
        whole = size & -BLOCK if layout == erofs.LAYOUT_INLINE else size
        return self._map[block * BLOCK : block * BLOCK + whole] + self._map[follows : follows + size - whole]

    def _chunk_block(self, table: int, number: int) -> int:
        (block,) = struct.unpack_from("<I", self._map, table + 4 * number)
        return int(block)

    def _segments(self, size: int, union: int, table: int) -> Iterator[Segment]:
        """A sparse file's chunks with data; those that are neighbours in file and image are one segment."""
        chunk_blocks = 1 << (union & 31)
        chunk = BLOCK * chunk_blocks
        start = end = expected = 0
        for number in range((size + chunk - 1) // chunk):
            block = self._chunk_block(table, number)
            if block == erofs.HOLE:
                continue
            if end > start and (number * chunk != end or block != expected):
                yield Segment(start, end - start)
                start = number * chunk
            elif end == start:
                start = number * chunk
            end = min(size, (number + 1) * chunk)
            expected = block + chunk_blocks
        if end > start:
            yield Segment(start, end - start)

    def _read_xattrs(self, at: int, units: int) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        end = at + erofs.XATTR_HEADER.size + 4 * (units - 1)
        _, shared = erofs.XATTR_HEADER.unpack_from(self._map, at)
        at += erofs.XATTR_HEADER.size
        for number in struct.unpack_from(f"<{shared}I", self._map, at):
            self._read_xattr(self._xattrs + 4 * number, found)
        at += 4 * shared
        while at < end:
            at = self._read_xattr(at, found)
        return found

    def _read_xattr(self, at: int, found: dict[bytes, bytes]) -> int:
        """Add the attribute at *at* to *found*.  Returns where the next one is."""
        length, prefix, size = erofs.XATTR_ENTRY.unpack_from(self._map, at)
        at += erofs.XATTR_ENTRY.size
        name = erofs.XATTR_PREFIXES[prefix] + self._map[at : at + length]
        found[name] = self._map[at + length : at + length + size]
        at += length + size
        return at + -at % 4
