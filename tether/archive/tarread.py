"""The members of a tar archive that comes through a pipe: v7, ustar, GNU (long names, sparse files), PAX.

Nothing that the archive says is trusted: what is held in memory is bounded, numbers are checked, and what is wrong is
an ArchiveError that names the member.
Sources: POSIX.1-2017 pax; GNU tar manual, "Basic Tar Format" and "Storing Sparse Files"; star(5) for SCHILY.xattr.
"""

import errno
import os
import struct

from tether.archive.entry import (
    BLOCK,
    BLOCK_DEVICE,
    CHAR,
    FIFO,
    FILE,
    FOLDER,
    HARD_LINK,
    SYMLINK,
    ArchiveError,
    Entry,
    Segment,
    padding,
)
from tether.archive.tarsparse import gnu_map, pax_map_0, pax_map_1, place

MAX_EXTENSION = 1 << 20  # bytes of one PAX header or long name; GNU tar writes a few thousand for 40 attributes
PATH_MAX = 4096  # linux/limits.h
PIECE = 1 << 20

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
_SUM = slice(148, 156)
_KINDS = {
    b"0": FILE, b"\0": FILE, b"7": FILE, b"S": FILE, b"1": HARD_LINK, b"2": SYMLINK, b"3": CHAR, b"4": BLOCK_DEVICE,
    b"5": FOLDER, b"D": FOLDER, b"6": FIFO,
}  # fmt: skip
_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK, _GNU_LABEL, _GNU_SPARSE = b"x", b"g", b"L", b"K", b"V", b"S"
_SECOND = 1_000_000_000
_MAX_ID = 1 << 32
_MAX_SIZE = 1 << 63


class TarReader:
    """Members one after the other: `next`, then perhaps `copy_to`."""

    def __init__(self, source: int) -> None:
        """`source` is the read end of a pipe, blocking."""
        self._source = source
        self._left = 0  # bytes of the current member's data that were not read
        self._pad = 0
        self._globals: dict[bytes, bytes] = {}
        self._name = ""

    def next(self) -> Entry | None:
        """The next member, None at the archive's end.  Raises ArchiveError, OSError."""
        self._skip(self._left + self._pad)
        self._left = self._pad = 0
        name = link = b""
        records: list[tuple[bytes, bytes]] = []
        while (block := self._header()) is not None:
            fields = _HEADER.unpack(block)
            kind, size = fields[7], self._number(fields[4])
            self._name = _text(fields[0]).decode("utf-8", "backslashreplace")
            if kind in _KINDS:
                return self._entry(block, fields, name, link, records)
            if not 0 <= size <= MAX_EXTENSION:
                raise self._wrong(f"an extension header of {size} bytes; {MAX_EXTENSION} are the limit")
            body = self._exact(size)
            self._skip(padding(size))
            if kind == _PAX:
                records = parse_records(body)
            elif kind == _PAX_GLOBAL:
                self._globals.update(parse_records(body))
                if len(self._globals) > MAX_EXTENSION // BLOCK:
                    raise self._wrong("global headers without end")
            elif kind == _GNU_NAME:
                name = _text(body)
            elif kind == _GNU_LINK:
                link = _text(body)
            elif kind != _GNU_LABEL:
                raise self._wrong(f"a member of unknown type {kind!r}")
        return None

    def drain(self) -> None:
        """Reads what follows the end, so that the writer can finish."""
        while os.read(self._source, PIECE):
            pass

    def copy_to(self, target: int, entry: Entry) -> None:
        """Writes the content of the current member, a file, to one that is open and empty.  Raises as `next`."""
        if entry.segments is None:
            self._copy(target, entry.size)
            return
        os.ftruncate(target, entry.size)
        for segment in entry.segments:
            os.lseek(target, segment.offset, os.SEEK_SET)
            self._copy(target, segment.length)

    def _copy(self, target: int, count: int) -> None:
        """From the pipe to the file, inside the kernel."""
        while count:
            moved = os.splice(self._source, target, min(count, PIECE))
            if not moved:
                raise self._wrong("the archive ends in the middle of it")
            count -= moved
            self._left -= moved

    def _entry(self, block: bytes, fields: tuple[bytes, ...], name: bytes, link: bytes,
               records: list[tuple[bytes, bytes]]) -> Entry:
        said = {**self._globals, **dict(records)}
        name = said.get(b"path", name) or _header_name(fields)
        kind = _KINDS[fields[7]]
        if kind == FILE and name.endswith(b"/"):  # how v7 spells a folder
            kind = FOLDER
        size = self._decimal(said[b"size"]) if b"size" in said else self._number(fields[4])
        entry = Entry(
            name=said.get(b"GNU.sparse.name", name), kind=kind, mode=self._number(fields[1]) & 0o7777,
            uid=self._id(said, b"uid", fields[2]), gid=self._id(said, b"gid", fields[3]), size=size,
            mtime_ns=self._time(said[b"mtime"]) if b"mtime" in said else self._number(fields[5]) * _SECOND,
            link=said.get(b"linkpath", link) or _text(fields[8]),
            device=self._device(fields) if kind in (CHAR, BLOCK_DEVICE) else 0,
            xattrs=_xattrs(said),
        )  # fmt: skip
        self._name = entry.name[:200].decode("utf-8", "backslashreplace")
        self._check(entry)
        if kind == FILE:
            return self._with_data(entry, block, fields, records, said)
        self._left, self._pad = (size, padding(size)) if fields[7] in (b"D", b"0", b"\0") else (0, 0)
        return entry.but(size=0)

    def _with_data(self, entry: Entry, block: bytes, fields: tuple[bytes, ...], records: list[tuple[bytes, bytes]],
                   said: dict[bytes, bytes]) -> Entry:
        """A file: how much is stored, and where it belongs if it is sparse."""
        stored, size = entry.size, entry.size
        pad = padding(stored)
        segments: list[Segment] | None = None
        try:
            if fields[7] == _GNU_SPARSE:
                segments, size = gnu_map(block, lambda: self._exact(BLOCK))
            elif b"GNU.sparse.major" in said and said[b"GNU.sparse.major"] != b"0":
                segments, taken = pax_map_1(lambda: self._exact(BLOCK), stored)
                stored, size = stored - taken, self._decimal(said.get(b"GNU.sparse.realsize", b""))
            elif b"GNU.sparse.size" in said:
                segments, size = pax_map_0(records), self._decimal(said[b"GNU.sparse.size"])
            placed = None if segments is None else place(segments, stored, size)
        except ValueError as error:
            raise self._wrong(str(error)) from None
        self._left, self._pad = stored, pad
        return entry.but(size=size, segments=placed)

    def _check(self, entry: Entry) -> None:
        for number, limit in ((entry.uid, _MAX_ID), (entry.gid, _MAX_ID), (entry.size, _MAX_SIZE)):
            if not 0 <= number < limit:
                raise self._wrong(f"a number out of range: {number}")
        if abs(entry.mtime_ns) >= _MAX_SIZE * _SECOND:
            raise self._wrong("a time out of range")
        for text in (entry.name, entry.link):
            if len(text) > PATH_MAX or b"\0" in text:
                raise self._wrong("a name that is too long, or has a null byte")
        if not entry.name or (not entry.link and entry.kind in (HARD_LINK, SYMLINK)):
            raise self._wrong("a member without a name, or a link to nothing")

    # numbers

    def _number(self, field: bytes) -> int:
        """Octal digits, or base 256 where the first bit is set."""
        if field[0] & 0x80:
            value = int.from_bytes(field, "big")
            bits = 8 * len(field)
            return value - (1 << bits) if field[0] & 0x40 else value - (1 << bits - 1)
        digits = field.split(b"\0", 1)[0].strip(b" ")
        if digits.strip(b"01234567"):
            raise self._wrong(f"a field of its header is no number: {field!r}")
        return int(digits, 8) if digits else 0

    def _decimal(self, digits: bytes) -> int:
        if not digits.isdigit() or len(digits) > 20:
            raise self._wrong(f"a record that is no number: {digits[:40]!r}")
        return int(digits)

    def _id(self, said: dict[bytes, bytes], key: bytes, field: bytes) -> int:
        return self._decimal(said[key]) if key in said else self._number(field)

    def _time(self, text: bytes) -> int:
        whole, _, fraction = text.lstrip(b"-").partition(b".")
        ns = self._decimal(whole or b"0") * _SECOND + self._decimal((fraction[:9] + b"000000000")[:9])
        return -ns if text.startswith(b"-") else ns

    def _device(self, fields: tuple[bytes, ...]) -> int:
        major, minor = self._number(fields[10]), self._number(fields[11])
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise self._wrong(f"a device number that Linux cannot have: {major}:{minor}")
        return os.makedev(major, minor)

    # bytes

    def _header(self) -> bytes | None:
        """The next header; None at a block of zeros, or where the archive just ends, as some writers do."""
        block = os.read(self._source, BLOCK)
        if not block:
            return None
        if len(block) < BLOCK:
            block += self._exact(BLOCK - len(block))
        if not block.strip(b"\0"):
            return None
        digits = block[_SUM].split(b"\0", 1)[0].strip(b" ")
        stored = -1 if not digits or digits.strip(b"01234567") else int(digits, 8)
        rest = block[:_SUM.start] + block[_SUM.stop:]
        total = sum(rest) + 8 * ord(" ")
        if stored != total and stored != total - 256 * sum(byte > 127 for byte in rest):
            raise self._wrong("the header's checksum is wrong: the archive is damaged, or is none (compressed?)")
        return block

    def _exact(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = os.read(self._source, count - len(data))
            if not more:
                raise self._wrong("the archive ends in the middle of it")
            data += more
        return data

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._exact(min(count, PIECE)))

    def _wrong(self, cause: str) -> ArchiveError:
        return ArchiveError(self._name or "archive", cause, errno.EBADMSG)


def parse_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records of a PAX header, in order.  Raises ArchiveError."""
    records = []
    at = 0
    while at < len(data):
        digits, _, _ = data[at:at + 20].partition(b" ")
        end = at + int(digits) if digits.isdigit() else 0
        key, equals, value = data[at + len(digits) + 1:end - 1].partition(b"=")
        if not equals or not key or end > len(data) or data[end - 1:end] != b"\n":
            raise ArchiveError("archive", "a PAX header that is not made of records", errno.EBADMSG)
        records.append((key, value))
        at = end
    return records


def _xattrs(said: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    prefix = b"SCHILY.xattr."
    return tuple((key[len(prefix):].replace(b"%3D", b"=").replace(b"%25", b"%"), value)
                 for key, value in said.items() if key.startswith(prefix))


def _header_name(fields: tuple[bytes, ...]) -> bytes:
    name, prefix = _text(fields[0]), _text(fields[12])
    return prefix + b"/" + name if prefix and fields[9].startswith(b"ustar\0") else name


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]
