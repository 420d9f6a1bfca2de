"""The bytes of a new ext4: a layout in, ``(offset, bytes)`` out.  The decisions are explained in ext4.py.

Structures and field names: Linux ``Documentation/filesystems/ext4``.  Integers are little-endian, but the journal's.
"""

import struct
from collections.abc import Iterator

from imagebuild import crc32c
from imagebuild.disk.ext4_layout import BLOCK, DESCRIPTOR, GROUP, INODE, LOST_FOUND_BLOCKS, Layout
from imagebuild.errors import DiskError

_ROOT_INO, _JOURNAL_INO, _LOST_FOUND_INO = 2, 8, 11
_USED_INODES = 11  # ten reserved ones and lost+found
_DIRECTORIES = 2

_HAS_JOURNAL, _EXT_ATTR, _DIR_INDEX = 0x4, 0x8, 0x20  # s_feature_compat
_INCOMPAT = 0x2 | 0x40 | 0x80 | 0x200  # filetype, extents, 64bit, flex_bg
_RO_COMPAT = (
    0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400
)  # sparse_super large_file huge_file dir_nlink extra_isize metadata_csum
_LOG_FLEX = 4  # the allocator thinks in 16 groups, as on a disk of mke2fs
_INODE_UNINIT, _BLOCK_UNINIT, _INODE_ZEROED = 1, 2, 4  # bg_flags
_EMPTY_GROUP = _INODE_UNINIT | _BLOCK_UNINIT | _INODE_ZEROED

_DIRECTORY, _JOURNAL_FILE = 0o040000, 0o100600
_TYPE_DIRECTORY, _TYPE_CHECKSUM = 2, 0xDE  # of directory entries
_TAIL = 12  # bytes of the checksum entry at a directory block's end

# Blocks of descriptors (1 TiB of disk) up to which every copy of them is written and not only the first: at 16 TiB the
# 24 copies have 192 MiB, which is no longer done in milliseconds.  Whoever changes such a disk first writes the others.
_ALL_COPIES_LIMIT = 128

# bg_: block bitmap, inode bitmap, inode table; free blocks, free inodes, directories, flags; exclude bitmap; checksums
# of the two bitmaps; unused inodes; checksum | upper halves: those of block numbers are always 0 (MAX_SIZE).
_GROUP_DESCRIPTOR = struct.Struct("<IIIHHHHIHHHH24xHHI")


def contents(layout: Layout, label: str, uuid: bytes) -> Iterator[tuple[int, bytes]]:
    """All that is not zero in a new file system, as (offset in bytes, bytes)."""
    name = label.encode()
    if len(name) > 16 or len(uuid) != 16:
        raise DiskError("make ext4", label, "the label has at most 16 bytes, the UUID exactly 16")
    seed = crc32c.update(crc32c.START, uuid)
    first, last = _block_bitmap(layout, 0), _block_bitmap(layout, layout.groups - 1)
    inodes = _bitmap(_USED_INODES, layout.inodes_per_group)
    table = _descriptors(layout, seed, first, last, inodes)
    for group in sorted(layout.copies):
        superblock = _superblock(layout, name, uuid, group)
        yield group * GROUP * BLOCK + (0 if group else 1024), superblock
        if group <= 1 or layout.table_blocks <= _ALL_COPIES_LIMIT:
            yield (group * GROUP + 1) * BLOCK, table
    yield layout.bitmap(0) * BLOCK, first + inodes + _inodes(layout, seed)
    yield layout.root * BLOCK, _root_directory(seed) + _lost_found(seed)
    if layout.journal_blocks:
        yield layout.journal * BLOCK, _journal_superblock(layout, uuid)
    if layout.groups > 1:
        yield layout.bitmap(layout.groups - 1) * BLOCK, last


def _bitmap(used: int, length: int) -> bytes:
    """A block of bits: ``used`` ones, zeros, and ones again from bit ``length``, behind what there is."""
    return ((1 << used) - 1 | (1 << 8 * BLOCK) - (1 << length)).to_bytes(BLOCK, "little")


def _block_bitmap(layout: Layout, group: int) -> bytes:
    return _bitmap(layout.used(group), layout.length(group))


def _descriptors(layout: Layout, seed: int, first: bytes, last: bytes, inodes: bytes) -> bytes:
    """The table of group descriptors: one pattern for all groups, then the few that differ."""
    table = bytearray(_plain_descriptors(layout, seed))

    def place(group: int, flags: int, bitmap_sum: int = 0, inodes_sum: int = 0) -> None:
        used = _USED_INODES if group == 0 else 0
        descriptor = _descriptor(
            layout.bitmap(group),
            free=layout.length(group) - layout.used(group),
            free_inodes=layout.inodes_per_group - used,
            directories=_DIRECTORIES if group == 0 else 0,
            flags=flags,
            sums=(bitmap_sum, inodes_sum),
        )
        table[group * DESCRIPTOR : (group + 1) * DESCRIPTOR] = _sealed(descriptor, seed, group)

    for group in layout.copies:
        place(group, _EMPTY_GROUP)
    place(layout.groups - 1, _INODE_UNINIT | _INODE_ZEROED, crc32c.update(seed, last))
    inodes_sum = crc32c.update(seed, inodes[: layout.inodes_per_group // 8])
    place(0, _INODE_ZEROED, crc32c.update(seed, first), inodes_sum)
    return bytes(table)


def _descriptor(
    bitmap: int, *, free: int, free_inodes: int, directories: int = 0, flags: int, sums: tuple[int, int] = (0, 0)
) -> bytes:
    """One group's descriptor without its checksum."""
    low, high = [value & 0xFFFF for value in sums], [value >> 16 for value in sums]
    return _GROUP_DESCRIPTOR.pack(
        bitmap, bitmap + 1, bitmap + 2, free, free_inodes, directories, flags, 0, *low, free_inodes, 0, *high, 0
    )


_CHECKSUM_AT = 30  # bytes; bg_checksum in a descriptor


def _descriptor_sum(descriptor: bytes, seed: int, group: int) -> int:
    return crc32c.update(seed, struct.pack("<I", group) + descriptor) & 0xFFFF


def _sealed(descriptor: bytes, seed: int, group: int) -> bytes:
    checksum = struct.pack("<H", _descriptor_sum(descriptor, seed, group))
    return descriptor[:_CHECKSUM_AT] + checksum + descriptor[_CHECKSUM_AT + 2 :]


def _plain_descriptors(layout: Layout, seed: int) -> bytes:
    """Descriptors as if all groups were empty and without a copy of the superblock.

    A CRC is linear: flipping a bit of the input flips the same bits of the result whatever the rest is.  In these
    descriptors every bit of the group's number stands in fixed places (the group's first block is the number shifted),
    so 2**17 checksums take as many XORs, and not 2**17 passes over 68 bytes.
    """

    def plain(group: int) -> bytes:
        free = GROUP - 2 - layout.inode_blocks
        return _descriptor(group * GROUP, free=free, free_inodes=layout.inodes_per_group, flags=_EMPTY_GROUP)

    zero = _descriptor_sum(plain(0), seed, 0)
    sums = [zero]
    for bit in range((layout.groups - 1).bit_length()):
        flip = zero ^ _descriptor_sum(plain(1 << bit), seed, 1 << bit)
        sums += [value ^ flip for value in sums]
    pattern = plain(0)
    middle, end = pattern[12:_CHECKSUM_AT], pattern[_CHECKSUM_AT + 2 :]
    pack = struct.Struct(f"<III{len(middle)}sH{len(end)}s").pack
    starts = range(0, layout.groups * GROUP, GROUP)
    return b"".join([pack(at, at + 1, at + 2, middle, value, end) for at, value in zip(starts, sums, strict=False)])


def _inodes(layout: Layout, seed: int) -> bytes:
    """The beginning of group 0's inode table, up to the last inode in use."""
    table = bytearray(_LOST_FOUND_INO * INODE)

    def place(number: int, inode: bytes) -> None:
        table[(number - 1) * INODE : number * INODE] = _sealed_inode(inode, seed, number)

    place(_ROOT_INO, _inode(_DIRECTORY | 0o755, 3, layout.root, 1))
    place(_LOST_FOUND_INO, _inode(_DIRECTORY | 0o700, 2, layout.lost_found, LOST_FOUND_BLOCKS))
    if layout.journal_blocks:
        place(_JOURNAL_INO, _inode(_JOURNAL_FILE, 1, layout.journal, layout.journal_blocks))
    return bytes(table)


_EXTENTS_FLAG = 0x80000
_EXTRA_SIZE = 32  # bytes that an inode has beyond the classic 128


def _extent_tree(block: int, count: int) -> bytes:
    """i_block: an extent header and one extent, which maps the file's first ``count`` blocks."""
    return struct.pack("<HHHHIIHHI36x", 0xF30A, 1, 4, 0, 0, 0, count, block >> 32, block & 0xFFFFFFFF)


def _inode(mode: int, links: int, block: int, count: int) -> bytes:
    """An inode of root's, of one extent, with all times 0 (1970), without its checksum."""
    size = count * BLOCK
    classic = struct.pack(
        "<HHIIIIIHHIII60s",
        mode,
        0,
        size,
        0,
        0,
        0,
        0,
        0,
        links,
        size // 512,
        _EXTENTS_FLAG,
        0,
        _extent_tree(block, count),
    )
    return (classic.ljust(128, b"\0") + struct.pack("<H", _EXTRA_SIZE)).ljust(INODE, b"\0")


def _inode_seed(seed: int, number: int) -> int:
    """What checksums of and in an inode start from: its number and its generation, which is 0."""
    return crc32c.update(seed, struct.pack("<II", number, 0))


def _sealed_inode(inode: bytes, seed: int, number: int) -> bytes:
    checksum = crc32c.update(_inode_seed(seed, number), inode)
    sealed = bytearray(inode)
    struct.pack_into("<H", sealed, 0x7C, checksum & 0xFFFF)
    struct.pack_into("<H", sealed, 0x82, checksum >> 16)
    return bytes(sealed)


def _entry(inode: int, length: int, name: bytes, kind: int) -> bytes:
    return struct.pack("<IHBB", inode, length, len(name), kind) + name.ljust(length - 8, b"\0")


def _directory_block(entries: bytes, seed: int, number: int) -> bytes:
    """A directory's block: its entries and, as a last entry of no inode, their checksum."""
    checksum = crc32c.update(_inode_seed(seed, number), entries)
    return entries + struct.pack("<IHBBI", 0, _TAIL, 0, _TYPE_CHECKSUM, checksum)


def _root_directory(seed: int) -> bytes:
    own = _entry(_ROOT_INO, 12, b".", _TYPE_DIRECTORY) + _entry(_ROOT_INO, 12, b"..", _TYPE_DIRECTORY)
    rest = BLOCK - _TAIL - len(own)
    return _directory_block(own + _entry(_LOST_FOUND_INO, rest, b"lost+found", _TYPE_DIRECTORY), seed, _ROOT_INO)


def _lost_found(seed: int) -> bytes:
    own = _entry(_LOST_FOUND_INO, 12, b".", _TYPE_DIRECTORY)
    first = own + _entry(_ROOT_INO, BLOCK - _TAIL - len(own), b"..", _TYPE_DIRECTORY)
    empty = _directory_block(_entry(0, BLOCK - _TAIL, b"", 0), seed, _LOST_FOUND_INO)
    return _directory_block(first, seed, _LOST_FOUND_INO) + empty * (LOST_FOUND_BLOCKS - 1)


def _journal_superblock(layout: Layout, uuid: bytes) -> bytes:
    """An empty journal (jbd2, superblock version 2), big-endian: first log block 1, sequence 1, nothing to replay."""
    return struct.pack(
        ">IIIIIIIIIIII16sI", 0xC03B3998, 4, 0, BLOCK, layout.journal_blocks, 1, 1, 0, 0, 0, 0, 0, uuid, 1
    ).ljust(1024, b"\0")


def _superblock(layout: Layout, name: bytes, uuid: bytes, group: int) -> bytes:
    """The superblock, or its copy in ``group``: 1024 bytes, field by field at the offsets of the documentation."""
    block = bytearray(1024)

    def put(offset: int, form: str, *values: int | bytes) -> None:
        struct.pack_into("<" + form, block, offset, *values)

    inodes = layout.groups * layout.inodes_per_group
    put(0x00, "II", inodes, layout.blocks & 0xFFFFFFFF)
    put(0x0C, "II", layout.free_blocks & 0xFFFFFFFF, inodes - _USED_INODES)
    put(0x18, "IIIII", 2, 2, GROUP, GROUP, layout.inodes_per_group)  # 1024 << 2 is the block size
    put(0x36, "HHHH", 0xFFFF, 0xEF53, 1, 1)  # no check every n mounts; magic; clean; go on after errors
    put(0x4C, "I", 1)  # revision with features
    put(0x54, "IHH", _LOST_FOUND_INO, INODE, group & 0xFFFF)  # the first inode that is not reserved
    journal = _HAS_JOURNAL if layout.journal_blocks else 0
    put(0x5C, "III", journal | _EXT_ATTR | _DIR_INDEX, _INCOMPAT, _RO_COMPAT)
    put(0x68, "16s16s", uuid, name)
    put(0xEC, "16sBBH", uuid, 1, 1 if journal else 0, DESCRIPTOR)  # hash seed; half MD4; journal's inode saved below
    put(0x100, "I", 0x4 | 0x8)  # mount with user xattrs and ACLs
    if journal:
        put(0xE0, "I", _JOURNAL_INO)
        put(0x10C, "60sII", _extent_tree(layout.journal, layout.journal_blocks), 0, layout.journal_blocks * BLOCK)
    put(0x150, "III", layout.blocks >> 32, 0, layout.free_blocks >> 32)
    put(0x15C, "HHI", _EXTRA_SIZE, _EXTRA_SIZE, 2)  # unsigned directory hash
    put(0x174, "BB", _LOG_FLEX, 1)  # checksums are CRC-32C
    put(0x3FC, "I", crc32c.update(crc32c.START, bytes(block[:0x3FC])))
    return bytes(block)
