"""Where everything is in a new ext4: a size in, block numbers out.  The decisions are explained in ext4.py."""

import functools
from typing import NamedTuple

from imagebuild.errors import DiskError

BLOCK = 4096  # bytes; the page size, so that one page is one block
GROUP = 8 * BLOCK  # blocks per group: what one block of bitmap can describe
INODE = 256  # bytes
DESCRIPTOR = 64  # bytes of a group's descriptor, with the feature 64bit

MIN_SIZE = 1 << 20
MAX_SIZE = 16 << 40  # 2**32 blocks: block numbers stay in the descriptors' lower halves
MIN_JOURNALLED_SIZE = 8 << 20  # below this the smallest journal that Linux takes (4 MiB) would be half the disk

ROOT_BLOCKS = 1
LOST_FOUND_BLOCKS = 4  # e2fsck puts what it finds here and must not need to allocate

_JOURNAL_MIN, _JOURNAL_MAX = 1024, 16384  # blocks: the kernel's least; 64 MiB, which is plenty for one VM's disk
_JOURNAL_SHARE = 64  # part of the disk's size, in between

_SMALL_DISK = 512 << 20
_BYTES_PER_INODE_SMALL, _BYTES_PER_INODE = 8192, 16384
_LAST_GROUP_MIN_FREE = 50  # blocks; a last group with less to give is left off, as mke2fs does


class Layout(NamedTuple):
    """A file system of ``blocks`` blocks in ``groups`` groups; all numbers are blocks unless they say otherwise."""

    blocks: int
    groups: int
    inodes_per_group: int
    journal_blocks: int

    @property
    def table_blocks(self) -> int:
        """Length of one copy of the table of group descriptors."""
        return -(-self.groups * DESCRIPTOR // BLOCK)

    @property
    def inode_blocks(self) -> int:
        """Length of one group's inode table."""
        return self.inodes_per_group * INODE // BLOCK

    @property
    def copies(self) -> frozenset[int]:
        """The groups with room for a superblock and descriptors: 0, 1, and powers of 3, 5 and 7 (sparse_super)."""
        return _copies(self.groups)

    def bitmap(self, group: int) -> int:
        """The group's block bitmap; its inode bitmap and its inode table follow."""
        return group * GROUP + (1 + self.table_blocks if group in self.copies else 0)

    def overhead(self, group: int) -> int:
        """How many blocks of the group are metadata."""
        return self.bitmap(group) - group * GROUP + 2 + self.inode_blocks

    def length(self, group: int) -> int:
        """How many blocks the group has."""
        return min(GROUP, self.blocks - group * GROUP)

    def used(self, group: int) -> int:
        """How many blocks of the group are taken; only group 0 has content."""
        content = ROOT_BLOCKS + LOST_FOUND_BLOCKS + self.journal_blocks if group == 0 else 0
        return self.overhead(group) + content

    @property
    def root(self) -> int:
        """The root directory, the first block after group 0's metadata."""
        return self.overhead(0)

    @property
    def lost_found(self) -> int:
        """The first block of lost+found."""
        return self.root + ROOT_BLOCKS

    @property
    def journal(self) -> int:
        """The first block of the journal."""
        return self.lost_found + LOST_FOUND_BLOCKS

    @property
    def free_blocks(self) -> int:
        """How many blocks of the whole file system are free."""
        copies = (len(self.copies) - 1) * (1 + self.table_blocks)
        return self.blocks - self.used(0) - (self.groups - 1) * (2 + self.inode_blocks) - copies


@functools.cache
def _copies(groups: int) -> frozenset[int]:
    found = {0, 1}
    for base in (3, 5, 7):
        power = base
        while power < groups:
            found.add(power)
            power *= base
    return frozenset(group for group in found if group < groups)


def plan(size: int, *, journal: bool = True) -> Layout:
    """Lay out a file system on ``size`` bytes; part of a block at the end stays unused.  DiskError if out of range.

    A disk below MIN_JOURNALLED_SIZE has no journal in any case.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise DiskError("make ext4", f"{size} bytes", f"a file system has {MIN_SIZE} to {MAX_SIZE} bytes")
    blocks = size // BLOCK
    ratio = _BYTES_PER_INODE_SMALL if size < _SMALL_DISK else _BYTES_PER_INODE
    per_block = BLOCK // INODE
    inodes_per_group = -(-min(blocks, GROUP) * BLOCK // ratio // per_block) * per_block
    journalled = journal and size >= MIN_JOURNALLED_SIZE
    log = max(_JOURNAL_MIN, min(_JOURNAL_MAX, blocks // _JOURNAL_SHARE)) if journalled else 0
    layout = Layout(blocks, -(-blocks // GROUP), inodes_per_group, log)
    last = layout.groups - 1
    if last and layout.length(last) < layout.overhead(last) + _LAST_GROUP_MIN_FREE:
        layout = Layout(last * GROUP, last, inodes_per_group, log)
    return layout
