"""The 512-byte tar header: v7, ustar, GNU and star variants, numbers in octal and base 256.

Sources: POSIX.1-2017 *pax* ("ustar Interchange Format"), GNU tar manual ("Basic Tar Format"), star(5).
Functions raise `ValueError` with a cause fit for a person; the caller knows which entry it was.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple
from zlib import adler32

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

#: name mode uid gid size mtime checksum type link magic+version (uname gname) major minor prefix (padding)
_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
_CHECKSUM = slice(148, 156)
_STAR_TRAILER = slice(508, 512)
#: star keeps access and change time in the last 24 bytes of the prefix field.
_STAR_PREFIX = 131
_SPACES_FOR_CHECKSUM = 8 * ord(" ")
_ADLER_BASE = 65521


class Header(NamedTuple):
    """The fields all variants share, decoded; `major` and `minor` stay raw, since most entries have none."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    type: bytes
    link: bytes
    major: bytes
    minor: bytes


@lru_cache(maxsize=4096)
def number(field: bytes) -> int:
    """A numeric field: octal digits, or base 256 (two's complement) when the top bit is set.

    Cached since the same modes, owners and times come again and again.
    """
    if field and field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        return value - (1 << bits) if field[0] & 0x40 else value - (1 << (bits - 1))
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if not digits.isdigit():
        digits = digits.partition(b"\0")[0].rstrip(b" ")
        if not digits.isdigit():
            raise ValueError(f"a numeric header field holds {field!r}")
    return int(digits, 8)


def _exact_checksum_matches(block: bytes, stored: int) -> bool:
    """Add up the bytes, as unsigned and as signed numbers: old tars on some machines did the latter."""
    rest = block[: _CHECKSUM.start] + block[_CHECKSUM.stop :]
    unsigned = sum(rest) + _SPACES_FOR_CHECKSUM
    signed = unsigned - 256 * sum(byte > 127 for byte in rest)
    return stored in (unsigned, signed)


def parse_header(block: bytes) -> Header:
    """Decode one header block.  Raises `ValueError` if it is none.

    Its bytes must add up to its checksum.  adler32's low half is 1 + the sum of all bytes modulo 65521, at C speed;
    only on a mismatch Python adds bytes.
    """
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic, major, minor, prefix = _FIELDS.unpack(block)
    stored = number(checksum)
    total = (adler32(block) & 0xFFFF) - 1 - sum(checksum) + _SPACES_FOR_CHECKSUM
    if (total - stored) % _ADLER_BASE and not _exact_checksum_matches(block, stored):
        raise ValueError("the header's checksum is wrong: the archive is damaged, or this is no tar archive")
    name = name.split(b"\0", 1)[0]
    if prefix[0] and magic[:6] == b"ustar\0":
        if block[_STAR_TRAILER] == b"tar\0":
            prefix = prefix[:_STAR_PREFIX]
        prefix = prefix.split(b"\0", 1)[0]
        if prefix:
            name = prefix + b"/" + name
    length = number(size)
    if length < 0:
        raise ValueError(f"its size is negative ({length})")
    link = link.split(b"\0", 1)[0] if link[0] else b""
    return Header(name, number(mode), number(uid), number(gid), length, number(mtime), kind, link, major, minor)
