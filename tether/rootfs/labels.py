"""Disks by the label of their file system (mke2fs -L), for those that have no serial number that one could know.

Imported late: few specs name a label.  Whatever is read here may be hostile; it is compared and no more.
"""

import os

_SUPERBLOCK = 1024  # ext4's, on the disk (kernel documentation, "ext4 Data Structures and Algorithms", Super Block)
_MAGIC_AT, _MAGIC = 0x38, b"\x53\xef"
_LABEL_AT, _LABEL_BYTES = 0x78, 16
_READ = _LABEL_AT + _LABEL_BYTES


def labelled(names: list[str], label: str) -> list[str]:
    """Those of the block devices (names in /dev) whose ext4 has this label."""
    return [name for name in names if label_of(_superblock(name)) == label.encode()]


def label_of(superblock: bytes) -> bytes | None:
    """The label in the first bytes of a superblock; None if it is no ext4's."""
    if len(superblock) < _READ or superblock[_MAGIC_AT:_MAGIC_AT + len(_MAGIC)] != _MAGIC:
        return None
    return superblock[_LABEL_AT:_READ].rstrip(b"\0")


def _superblock(name: str) -> bytes:
    try:
        handle = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""  # gone again, or a drive without a medium
    try:
        return os.pread(handle, _READ, _SUPERBLOCK)
    except OSError:
        return b""  # a disk that cannot be read is not the one that is meant
    finally:
        os.close(handle)
