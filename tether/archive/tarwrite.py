"""Headers of tar members, as GNU tar and every reader of POSIX.1-2001 understand them.

A ustar header holds what fits; the rest (nanoseconds, long names, large numbers, extended attributes) stands in a PAX
header before it.  Names are written as the bytes they are.  Sparse files are in GNU's PAX format 1.0 (GNU tar manual,
"Storing Sparse Files"): the map is the beginning of the data.  Pure functions.
"""

import os
import struct

from tether.archive.entry import BLOCK, BLOCK_DEVICE, CHAR, FILE, FOLDER, Entry, Segment, padding

END = bytes(2 * BLOCK)

# name, mode, uid, gid, size, mtime, checksum, type, link, magic and version, owner, group, major, minor, prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_NAME = 100
_SMALL = 0o7777777  # what seven octal digits hold
_LARGE = 0o77777777777
_NO_SUM = b" " * 8
_MAGIC = b"ustar\x0000"
_SECOND = 1_000_000_000
_PAX = b"x"


def header_of(entry: Entry) -> bytes:
    """All that stands before the data of a member, the map of a sparse file included."""
    records = _records(entry)
    name, stored, sparse_map = entry.name, entry.size, b""
    if entry.segments is not None:
        sparse_map = _sparse_map(entry.segments)
        stored = len(sparse_map) + sum(segment.length for segment in entry.segments)
        records += pax_record(b"GNU.sparse.major", b"1") + pax_record(b"GNU.sparse.minor", b"0")
        records += pax_record(b"GNU.sparse.name", name) + pax_record(b"GNU.sparse.realsize", b"%d" % entry.size)
        name = b"GNUSparseFile.0/" + name.rpartition(b"/")[2]
        if len(name) > _NAME:
            name = name[:_NAME]
        if stored > _LARGE:
            records += pax_record(b"size", b"%d" % stored)
    if entry.kind == FOLDER and not name.endswith(b"/"):
        name += b"/"
    head = b""
    if records:
        short = Entry(name=(b"PaxHeaders/" + name)[:_NAME], size=len(records), mtime_ns=entry.mtime_ns)
        head = _block(short, short.name, len(records), _PAX) + records + bytes(padding(len(records)))
    return head + _block(entry, name, stored if entry.kind == FILE else 0, entry.kind) + sparse_map


def pax_record(key: bytes, value: bytes) -> bytes:
    """ "length key=value\\n", where the length counts its own digits."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    if len(str(length)) > len(str(len(body))):
        length += 1
    return str(length).encode() + body


def timestamp(ns: int) -> bytes:
    """Seconds with their fraction, if any, in decimal."""
    seconds, fraction = divmod(abs(ns), _SECOND)
    sign = b"-" if ns < 0 else b""
    return b"%b%d.%09d" % (sign, seconds, fraction) if fraction else b"%b%d" % (sign, seconds)


def _records(entry: Entry) -> bytes:
    """The PAX records of what the ustar header cannot say."""
    records = b""
    if entry.segments is None and len(entry.name) + (entry.kind == FOLDER) > _NAME:
        records += pax_record(b"path", entry.name + (b"/" if entry.kind == FOLDER else b""))
    if len(entry.link) > _NAME:
        records += pax_record(b"linkpath", entry.link)
    if entry.mtime_ns % _SECOND or not 0 <= entry.mtime_ns <= _LARGE * _SECOND:
        records += pax_record(b"mtime", timestamp(entry.mtime_ns))
    if entry.uid > _SMALL:
        records += pax_record(b"uid", b"%d" % entry.uid)
    if entry.gid > _SMALL:
        records += pax_record(b"gid", b"%d" % entry.gid)
    if entry.size > _LARGE and entry.segments is None:
        records += pax_record(b"size", b"%d" % entry.size)
    for key, value in entry.xattrs:  # "=" ends the key: written as GNU tar does
        records += pax_record(b"SCHILY.xattr." + key.replace(b"%", b"%25").replace(b"=", b"%3D"), value)
    return records


def _block(entry: Entry, name: bytes, stored: int, kind: bytes) -> bytes:
    """The 512 bytes; a number that does not fit is in a PAX record, and 0 here."""
    seconds = entry.mtime_ns // _SECOND
    major = minor = b""
    if kind in (CHAR, BLOCK_DEVICE):
        major, minor = b"%07o" % os.major(entry.device), b"%07o" % os.minor(entry.device)
    owner, group = _fitting(entry.uid, _SMALL), _fitting(entry.gid, _SMALL)
    fields = [
        name[:_NAME], b"%07o" % entry.mode, b"%07o" % owner, b"%07o" % group,
        b"%011o" % _fitting(stored, _LARGE), b"%011o" % _fitting(seconds, _LARGE), _NO_SUM, kind, entry.link[:_NAME],
        _MAGIC, b"", b"", major, minor, b"",
    ]
    fields[6] = b"%06o\0 " % sum(_HEADER.pack(*fields))
    return _HEADER.pack(*fields)


def _fitting(number: int, limit: int) -> int:
    return number if 0 <= number <= limit else 0


def _sparse_map(segments: tuple[Segment, ...]) -> bytes:
    """Count, then offset and length of each, a decimal number a line, padded to whole blocks."""
    lines = b"%d\n" % len(segments) + b"".join(b"%d\n%d\n" % (one.offset, one.length) for one in segments)
    return lines + bytes(padding(len(lines)))
