"""Walks a tar stream: one `Entry` for each member, its data as views, nothing read twice and nothing sought.

Python's `tarfile` needs four times as long for a layer as everything else together, so headers are decoded here.
Understood: v7, ustar, star, GNU (long names, sparse files), PAX (local and global headers, sparse 0.0, 0.1 and 1.0).
Whatever is wrong with the archive ends in a `LayerError`; `Limits` bound what a hostile one can make us hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NoReturn

from imagebuild.errors import LayerError
from imagebuild.layer import pax, tarsparse
from imagebuild.layer.bytestream import ByteStream
from imagebuild.layer.entry import NO_XATTRS, Entry, Kind
from imagebuild.layer.limits import PATH_MAX, Limits
from imagebuild.layer.tarheader import BLOCK, ZERO_BLOCK, Header, number, parse_header

#: How typeflags map to kinds.  NUL is v7's regular file, "7" a file some wanted contiguous, "D" GNU's directory with
#: a list of names as data, which nobody needs.
_KINDS = {
    b"0": Kind.REGULAR, b"\0": Kind.REGULAR, b"7": Kind.REGULAR, b"S": Kind.REGULAR,
    b"1": Kind.HARDLINK, b"2": Kind.SYMLINK, b"3": Kind.CHAR, b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY, b"D": Kind.DIRECTORY, b"6": Kind.FIFO,
}  # fmt: skip
_PAX_LOCAL, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK, _GNU_LABEL = b"x", b"g", b"L", b"K", b"V"
_GNU_SPARSE, _GNU_DIRECTORY = b"S", b"D"

#: Global records are gone through for every entry, so there may not be many.  Real archives have five at most.
_MAX_GLOBALS, _MAX_GLOBAL_BYTES = 100, 64 << 10
#: What a global header must not say: it would name every file alike, or give all of them one length.
_NEVER_GLOBAL = (b"path", b"linkpath", b"size", b"GNU.sparse.")


class TarStream:
    """The members of one archive.  Iterate; after each entry, `data()` gives what is stored for it."""

    def __init__(self, stream: ByteStream, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._globals: dict[bytes, bytes] = {}
        self._at = 0  # where the current header began
        self._stored = 0  # bytes of data that `data()` gives
        self._next = 0  # where the next header begins

    def data(self) -> Iterable[memoryview]:
        """What is stored for the current entry: the whole file, or its segments one after the other.  Once only."""
        return self._stream.pieces(self._stored)

    def __iter__(self) -> Iterator[Entry]:
        """Every member up to the end of the archive.  Raises `LayerError`."""
        name = link = b""
        records: list[tuple[bytes, bytes]] = []
        while (block := self._next_header()) is not None:
            try:
                header = parse_header(block)
                kind = header.type
                if kind in _KINDS:
                    yield self._entry(block, header, name, link, records)
                    name, link, records = b"", b"", []
                    continue
                payload = self._payload(header)
                if kind == _PAX_LOCAL:
                    records = pax.parse_records(payload)
                elif kind == _PAX_GLOBAL:
                    self._learn_globals(pax.parse_records(payload))
                elif kind == _GNU_NAME:
                    name = payload.rstrip(b"\0")
                elif kind == _GNU_LINK:
                    link = payload.rstrip(b"\0")
                elif kind != _GNU_LABEL:
                    raise ValueError(f"{header.name[:80]!r} has a type no layer may have: {kind!r}")
            except ValueError as error:
                self._fail(str(error))

    def _next_header(self) -> bytes | None:
        """The next header block, or None at the end: a block of zeros, or no more bytes (some writers stop so)."""
        stream = self._stream
        at = self._at = self._next
        stream.skip_to(at)
        block = stream.up_to(BLOCK)
        self._next = at + BLOCK
        if len(block) == BLOCK:
            return block if block != ZERO_BLOCK else None
        if block:
            stream.exact(BLOCK - len(block))  # complains
        return None

    def _reserve(self, length: int) -> None:
        """Note that *length* bytes of data follow, so the next header comes after their last block."""
        self._stored = length
        self._next = self._stream.offset + (length + BLOCK - 1 & -BLOCK)

    def _payload(self, header: Header) -> bytes:
        """The data of an extension header, which is held in memory and therefore bounded."""
        if header.size > self._limits.header_bytes:
            raise ValueError(
                f"an extension header of {header.size} bytes; {self._limits.header_bytes} are allowed"
            )
        self._reserve(header.size)
        return self._stream.exact(header.size)

    def _block(self) -> bytes:
        """One more block of the current member."""
        return self._stream.exact(BLOCK)

    def _learn_globals(self, records: list[tuple[bytes, bytes]]) -> None:
        """Take over a global header.  An empty value takes back what an earlier one said."""
        for key, value in records:
            if key.startswith(_NEVER_GLOBAL):
                continue
            if value:
                self._globals[key] = value
            else:
                self._globals.pop(key, None)
        size = sum(len(key) + len(value) for key, value in self._globals.items())
        if len(self._globals) > _MAX_GLOBALS or size > _MAX_GLOBAL_BYTES:
            raise ValueError(f"its global headers hold more than {_MAX_GLOBALS} records or {_MAX_GLOBAL_BYTES} bytes")

    def _entry(
        self, block: bytes, header: Header, name: bytes, link: bytes, records: list[tuple[bytes, bytes]]
    ) -> Entry:
        """The entry that *header* begins, with what extension headers said before it."""
        _, mode, uid, gid, size, mtime, typeflag, _, raw_major, raw_minor = header
        kind = _KINDS[typeflag]
        major = minor = 0
        if kind is Kind.CHAR or kind is Kind.BLOCK:
            major, minor = number(raw_major), number(raw_minor)
        entry = Entry(
            name or header.name, kind, mode & 0o7777, uid, gid, mtime, 0, size, link or header.link, major, minor,
            NO_XATTRS, None,
        )  # fmt: skip
        said = self._globals
        if records:
            said = {**said, **dict(records)}
        if said:
            entry = _amend(entry, said)
        if kind is Kind.REGULAR:
            if typeflag == _GNU_SPARSE or b"GNU.sparse.size" in said or b"GNU.sparse.realsize" in said:
                return _checked(self._sparse(block, typeflag, entry, records, said))
            if entry.name[-1:] == b"/":  # how v7 spells a directory
                entry = entry._replace(kind=Kind.DIRECTORY, size=0)
            self._reserve(entry.size)
            return _checked(entry)
        self._reserve(entry.size if typeflag == _GNU_DIRECTORY else 0)
        return _checked(entry._replace(size=0) if entry.size else entry)

    def _sparse(
        self,
        block: bytes,
        typeflag: bytes,
        entry: Entry,
        records: list[tuple[bytes, bytes]],
        said: dict[bytes, bytes],
    ) -> Entry:
        """A sparse file: find its map, in whichever of the four places it is."""
        stored, limit = entry.size, self._limits.sparse_segments
        if typeflag == _GNU_SPARSE:
            segments, size = tarsparse.old_gnu_map(block, self._block, limit)
        elif said.get(b"GNU.sparse.major", b"0") == b"0":
            segments = tarsparse.pax_map_0(records, limit)
            size = pax.decimal(said.get(b"GNU.sparse.size", b""), "sparse size")
        elif said[b"GNU.sparse.major"] == b"1":
            segments, taken = tarsparse.pax_map_1(self._block, stored, limit)
            stored -= taken
            size = pax.decimal(said.get(b"GNU.sparse.realsize", b""), "sparse size")
        else:
            raise ValueError("it is sparse in a format this program does not know")
        self._reserve(stored)
        checked = tarsparse.check_segments(segments, stored, size)
        return entry._replace(
            name=said.get(b"GNU.sparse.name", entry.name), size=size, segments=checked
        )

    def _fail(self, cause: str) -> NoReturn:
        raise LayerError(
            "read the tar archive",
            f"entry at byte {self._at}",
            cause,
            "have the image rebuilt: its archive is damaged or hostile",
        ) from None


def _amend(entry: Entry, said: dict[bytes, bytes]) -> Entry:
    """*entry* with what PAX records say in place of what its header says."""
    changes: dict[str, object] = {}
    for key, value in said.items():
        if key == b"mtime":
            changes["mtime"], changes["mtime_ns"] = pax.timestamp(value)
        elif key == b"path":
            changes["name"] = value
        elif key == b"linkpath":
            changes["link"] = value
        elif key == b"size":
            changes["size"] = pax.decimal(value, "size")
        elif key in (b"uid", b"gid"):
            changes[key.decode()] = pax.signed_decimal(value, key.decode())
        elif key in (b"SCHILY.devmajor", b"SCHILY.devminor"):
            changes[key[-5:].decode()] = pax.decimal(value, "device number")
        elif b"xattr." in key or key.startswith(b"RHT.security."):
            changes["xattrs"] = NO_XATTRS
    if "xattrs" in changes:
        changes["xattrs"] = pax.xattrs(said)
    return entry._replace(**changes) if changes else entry  # type: ignore[arg-type]


def _checked(entry: Entry) -> Entry:
    """*entry*, if every number fits where Linux keeps it and every name is one a system call could take."""
    name, kind, _, uid, gid, mtime, _, size, link, _, _, _, _ = entry
    if (uid | gid) >> 32:
        raise ValueError(f"{name[:80]!r} belongs to {uid}:{gid}; owners are 32 bits")
    if (size | abs(mtime)) >> 63:
        raise ValueError(f"{name[:80]!r} has a size or time beyond 63 bits")
    if len(name) > PATH_MAX or len(link) > PATH_MAX:
        raise ValueError(f"{name[:80]!r}... or its target is longer than {PATH_MAX} bytes")
    if b"\0" in name or b"\0" in link:
        raise ValueError(f"{name[:80]!r} or its target holds a NUL byte")
    if not link and (kind is Kind.HARDLINK or kind is Kind.SYMLINK):
        raise ValueError(f"{name[:80]!r} is a link to nothing")
    return entry
