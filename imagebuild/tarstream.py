"""Walks a tar stream: one `Entry` for each member, its data as views, nothing read twice and nothing sought.

Python's `tarfile` needs four times as long for a layer as everything else together, so headers are decoded here.
Understood: v7, ustar, star, GNU (long names, sparse files), PAX (local and global headers, sparse 0.0, 0.1 and 1.0).
Whatever is wrong with the archive ends in a `LayerError`; `Limits` bound what a hostile one can make us hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from imagebuild import pax, tarsparse
from imagebuild.bytestream import ByteStream, EndOfStream
from imagebuild.entry import NO_XATTRS, Entry, Kind
from imagebuild.errors import LayerError
from imagebuild.limits import PATH_MAX, Limits
from imagebuild.tarheader import BLOCK, ZERO_BLOCK, Header, number, parse_header

#: How typeflags map to kinds.  NUL is v7's regular file, "7" a file some wanted contiguous, "D" GNU's directory with
#: a list of names as data, which nobody needs.
_KINDS = {
    b"0": Kind.REGULAR, b"\0": Kind.REGULAR, b"7": Kind.REGULAR, b"S": Kind.REGULAR,
    b"1": Kind.HARDLINK, b"2": Kind.SYMLINK, b"3": Kind.CHAR, b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY, b"D": Kind.DIRECTORY, b"6": Kind.FIFO,
}  # fmt: skip
_PAX_LOCAL, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK, _GNU_LABEL = b"x", b"g", b"L", b"K", b"V"
_GNU_SPARSE, _GNU_DIRECTORY = b"S", b"D"

#: What a global header must not say: it would name every file alike, or give all of them one length.
_NEVER_GLOBAL = (b"path", b"linkpath", b"size", b"GNU.sparse.")

_UINT32_MAX = (1 << 32) - 1
_INT64_MAX = (1 << 63) - 1


class TarStream:
    """The members of one archive.  Iterate; after each entry, `data()` gives what is stored for it."""

    def __init__(self, stream: ByteStream, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._globals: dict[bytes, bytes] = {}
        self._at = 0  # where the current header began
        self._stored = 0  # bytes of data that `data()` gives
        self._next = 0  # where the next header begins

    def data(self) -> Iterator[memoryview]:
        """What is stored for the current entry: the whole file, or its segments one after the other."""
        try:
            yield from self._stream.pieces(self._stored)
        except EndOfStream as end:
            self._truncated(end)

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
        try:
            stream.skip(self._next - stream.offset)
        except EndOfStream as end:
            self._truncated(end)
        self._at = self._next
        block = stream.exact(BLOCK)
        if not block or block == ZERO_BLOCK:
            return None
        if len(block) < BLOCK:
            self._truncated(EndOfStream(BLOCK - len(block)))
        self._next = self._at + BLOCK
        return block

    def _reserve(self, length: int) -> None:
        """Note that *length* bytes of data follow, so the next header comes after their last block."""
        self._stored = length
        self._next = self._stream.offset + (length + BLOCK - 1) // BLOCK * BLOCK

    def _payload(self, header: Header) -> bytes:
        """The data of an extension header, which is held in memory and therefore bounded."""
        if header.size > self._limits.header_bytes:
            raise ValueError(
                f"an extension header of {header.size} bytes; {self._limits.header_bytes} are allowed"
            )
        self._reserve(header.size)
        data = self._stream.exact(header.size)
        if len(data) < header.size:
            self._truncated(EndOfStream(header.size - len(data)))
        return data

    def _block(self) -> bytes:
        """One more block of the current member."""
        block = self._stream.exact(BLOCK)
        if len(block) < BLOCK:
            self._truncated(EndOfStream(BLOCK - len(block)))
        return block

    def _learn_globals(self, records: list[tuple[bytes, bytes]]) -> None:
        """Take over a global header.  An empty value takes back what an earlier one said."""
        for key, value in records:
            if key.startswith(_NEVER_GLOBAL):
                continue
            if value:
                self._globals[key] = value
            else:
                self._globals.pop(key, None)
        if sum(len(key) + len(value) for key, value in self._globals.items()) > self._limits.header_bytes:
            raise ValueError(f"its global headers hold more than {self._limits.header_bytes} bytes")

    def _entry(
        self, block: bytes, header: Header, name: bytes, link: bytes, records: list[tuple[bytes, bytes]]
    ) -> Entry:
        """The entry that *header* begins, with what extension headers said before it."""
        kind = _KINDS[header.type]
        major = minor = 0
        if kind in (Kind.CHAR, Kind.BLOCK):
            major, minor = number(header.major), number(header.minor)
        entry = Entry(
            name or header.name, kind, header.mode & 0o7777, header.uid, header.gid, header.mtime, 0,
            header.size, link or header.link, major, minor, NO_XATTRS, None,
        )  # fmt: skip
        said = self._globals
        if records:
            said = {**said, **dict(records)}
        if said:
            entry = _amend(entry, said)
        if kind is Kind.REGULAR:
            if entry.name[-1:] == b"/" and header.type in b"\0" b"0":
                entry = entry._replace(kind=Kind.DIRECTORY)  # how v7 spells a directory
            elif header.type == _GNU_SPARSE or b"GNU.sparse.size" in said or b"GNU.sparse.realsize" in said:
                return _checked(self._sparse(block, header.type, entry, records, said))
        stored = entry.size if entry.kind is Kind.REGULAR or header.type == _GNU_DIRECTORY else 0
        self._reserve(stored)
        if entry.kind is not Kind.REGULAR and entry.size:
            entry = entry._replace(size=0)
        return _checked(entry)

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

    def _truncated(self, end: EndOfStream) -> NoReturn:
        self._fail(f"the archive ends {end.missing} bytes too early", "pull it again: it was cut off")

    def _fail(self, cause: str, remedy: str = "") -> NoReturn:
        raise LayerError(
            "read the tar archive",
            f"entry at byte {self._at}",
            cause,
            remedy or "have the image rebuilt: its archive is damaged or hostile",
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
    _, kind, _, uid, gid, mtime, _, size, link, *_ = entry
    if not 0 <= uid <= _UINT32_MAX or not 0 <= gid <= _UINT32_MAX:
        raise ValueError(f"{entry.name[:80]!r} belongs to {uid}:{gid}; owners are 32 bits")
    if size > _INT64_MAX or not -_INT64_MAX <= mtime <= _INT64_MAX:
        raise ValueError(f"{entry.name[:80]!r} has a size or time beyond 63 bits")
    if len(entry.name) > PATH_MAX or len(link) > PATH_MAX:
        raise ValueError(f"{entry.name[:80]!r}... or its target is longer than {PATH_MAX} bytes")
    if b"\0" in entry.name or b"\0" in link:
        raise ValueError(f"{entry.name[:80]!r} or its target holds a NUL byte")
    if kind in (Kind.HARDLINK, Kind.SYMLINK) and not link:
        raise ValueError(f"{entry.name[:80]!r} is a link to nothing")
    return entry
