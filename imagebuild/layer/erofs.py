"""The EROFS on-disk format: structures as bytes, and nothing that decides or writes.

Source: Linux kernel documentation, "EROFS - Enhanced Read-Only File System", and the names of ``fs/erofs/erofs_fs.h``.
All numbers are little-endian.  An inode's number (nid) is its byte offset in the image divided by 32, since images
made here keep ``meta_blkaddr`` at 0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from imagebuild import crc32c
from imagebuild.layer.entry import Kind
from imagebuild.layer.tree import Node

BLOCK_BITS = 12
BLOCK = 1 << BLOCK_BITS
SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_SIZE = 128
SLOT = 32  #: inodes begin at multiples of this
COMPACT_SIZE, EXTENDED_SIZE = 32, 64

MAGIC = 0xE0F5E1E2
FEATURE_COMPAT_SB_CHKSUM = 0x1
FEATURE_COMPAT_MTIME = 0x2
FEATURE_INCOMPAT_CHUNKED_FILE = 0x4

LAYOUT_PLAIN, LAYOUT_INLINE, LAYOUT_CHUNKS = 0, 2, 4
#: A chunk that is nowhere reads as zeros (EROFS_NULL_ADDR).
HOLE = 0xFFFFFFFF
MAX_CHUNK_BITS = 31
MAX_BLOCKS = HOLE - 1

XATTR_HEADER = struct.Struct("<IB7x")
XATTR_ENTRY = struct.Struct("<BBH")
#: Name prefixes that are kept as a number; a name without one of them no Linux inode can hold.
XATTR_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
#: ``i_xattr_icount`` is 16 bits and counts units of 4 bytes.
_MAX_XATTR_BODY = XATTR_HEADER.size + 4 * (0xFFFF - 1)
_MAX_XATTR_VALUE = 0xFFFF
_MAX_XATTR_NAME = 255
MAX_SHARED_XATTRS = 255

SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
COMPACT = struct.Struct("<HHHHIIIIHHI")
EXTENDED = struct.Struct("<HHHHQIIIIQIIQQ")
_DIRENT = struct.Struct("<QHBx")
DIRENT_SIZE = _DIRENT.size

FILE_TYPE_BITS = {
    Kind.REGULAR: 0o100000,
    Kind.DIRECTORY: 0o040000,
    Kind.CHAR: 0o020000,
    Kind.BLOCK: 0o060000,
    Kind.FIFO: 0o010000,
    Kind.SOCKET: 0o140000,
    Kind.SYMLINK: 0o120000,
}


def superblock(
    *,
    root_nid: int,
    inodes: int,
    blocks: int,
    time: tuple[int, int],
    uuid: bytes,
    label: bytes,
    xattr_block: int,
    chunked: bool,
) -> bytes:
    """The superblock with its checksum field still zero; *time* is that of all compact inodes."""
    seconds, nanoseconds = time
    return SUPERBLOCK.pack(
        MAGIC, 0, FEATURE_COMPAT_SB_CHKSUM | FEATURE_COMPAT_MTIME, BLOCK_BITS, 0, root_nid, inodes,
        seconds & 0xFFFFFFFFFFFFFFFF, nanoseconds, blocks, 0, xattr_block, uuid, label,
        FEATURE_INCOMPAT_CHUNKED_FILE if chunked else 0, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip


def seal_first_block(block: bytes) -> bytes:
    """The image's first block with the superblock's checksum filled in: it covers all from the superblock on."""
    crc = crc32c.update(crc32c.START, block[SUPERBLOCK_OFFSET:])
    at = SUPERBLOCK_OFFSET + 4
    return block[:at] + crc.to_bytes(4, "little") + block[at + 4 :]


def device_number(major: int, minor: int) -> int:
    """Linux's 32-bit encoding of a device number (``new_encode_dev``)."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def inode(node: Node, compact: bool, layout: int, union: int, units: int) -> bytes:
    """The inode of *node* without what follows it.

    *compact* takes 32 bytes: owners and link count in 16 bits, size in 32, and the time is the superblock's.  *union*
    is a block address, a device number or a chunk format; *units* is `xattr_units` of what follows.
    """
    mode = node.mode | FILE_TYPE_BITS[node.kind]
    if compact:
        return COMPACT.pack(
            layout << 1, units, mode, node.nlink, node.size, 0, union, node.number, node.uid, node.gid, 0
        )
    return EXTENDED.pack(
        layout << 1 | 1, units, mode, 0, node.size, union, node.number, node.uid, node.gid,
        node.mtime & 0xFFFFFFFFFFFFFFFF, node.mtime_ns, node.nlink, 0, 0,
    )  # fmt: skip


#: Where an extended inode keeps its link count.
EXTENDED_NLINK_OFFSET = 44


def _split_name(name: bytes) -> tuple[int, bytes]:
    """The number of a name's prefix and what follows it; (0, ...) for a name that Linux has no place for."""
    for index, prefix in XATTR_PREFIXES.items():
        if name == prefix or (prefix[-1:] == b"." and name.startswith(prefix)):
            return index, name[len(prefix) :]
    return 0, name


def xattr_entry(name: bytes, value: bytes) -> bytes:
    """One attribute, padded; empty if no Linux file system would take the name.  Raises `ValueError` if too large."""
    index, rest = _split_name(name)
    if not index:
        return b""
    if len(rest) > _MAX_XATTR_NAME or len(value) > _MAX_XATTR_VALUE:
        raise ValueError(f"its extended attribute {name[:80]!r} has {len(value)} bytes, more than EROFS holds")
    raw = XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
    return raw + bytes(-len(raw) % 4)


def xattr_body(xattrs: Mapping[bytes, bytes], shared: Mapping[bytes, int]) -> bytes:
    """What follows an inode with attributes: references to those in *shared* (entry: number), then the others.

    Sorted, so that the order in the archive does not matter.  Raises `ValueError` if they are too many.
    """
    inline: list[bytes] = []
    references: list[int] = []
    for name in sorted(xattrs):
        entry = xattr_entry(name, xattrs[name])
        if entry in shared and len(references) < MAX_SHARED_XATTRS:
            references.append(shared[entry])
        elif entry:
            inline.append(entry)
    if not inline and not references:
        return b""
    body = XATTR_HEADER.pack(0, len(references)) + struct.pack(f"<{len(references)}I", *references) + b"".join(inline)
    if len(body) > _MAX_XATTR_BODY:
        raise ValueError(f"its extended attributes have {len(body)} bytes; EROFS holds {_MAX_XATTR_BODY}")
    return body


def xattr_units(body: bytes) -> int:
    """``i_xattr_icount`` for *body*."""
    return (len(body) - XATTR_HEADER.size) // 4 + 1 if body else 0


def directory_split(names: Iterable[bytes]) -> list[int]:
    """How many of *names*, in order, go into each block of a directory."""
    counts: list[int] = []
    room = count = 0
    for name in names:
        need = DIRENT_SIZE + len(name)
        if need > room:
            if count:
                counts.append(count)
            room, count = BLOCK, 0
        room -= need
        count += 1
    counts.append(count)
    return counts


def directory_block(entries: list[tuple[bytes, int, Kind]]) -> bytes:
    """The (name, nid, kind) of one block: fixed-size records first, then the names they point to."""
    at = DIRENT_SIZE * len(entries)
    records: list[bytes] = []
    for name, nid, kind in entries:
        records.append(_DIRENT.pack(nid, at, kind))
        at += len(name)
    records += [name for name, _, _ in entries]
    return b"".join(records)
