"""An empty, writable ext4 of any size, made in milliseconds: a few dozen KiB written into a sparse file.

What makes it fast is what ext4 allows not to write.  Block groups that hold nothing are marked as such, so that the
kernel makes up their bitmaps; inode tables are holes, which read as zeros, and are marked as zeroed, so that no kernel
thread fills them later; the journal is its superblock and a hole.

Two decisions.  Every group keeps its own bitmaps and inode table (mke2fs gathers those of 16 groups): then no group but
the first and the last needs a bitmap at all, and a descriptor follows from its group's number.  And no space is
kept for a longer table: resize2fs grows such a disk all the same, by moving what is in the way.

Layout: Linux ``Documentation/filesystems/ext4``.  All integers are little-endian but the journal's.
"""

import os
import stat

from imagebuild.disk.ext4_encode import contents
from imagebuild.disk.ext4_layout import plan
from imagebuild.errors import DiskError


def make_ext4(fd: int, size: int, label: str, uuid: bytes, *, journal: bool = True) -> None:
    """Make an ext4 of ``size`` bytes in the regular file ``fd`` (named or not), whatever it held before.

    ``label`` has at most 16 bytes as UTF-8, ``uuid`` is 16 bytes and also seeds the checksums and the directory hash:
    equal arguments give equal bytes.  Nothing is synced: the caller knows whether the disk is to outlive the host.
    Without a `journal` the disk is for one machine only, because nobody could repair it after a crash.
    """
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise DiskError(
            "make ext4", f"file descriptor {fd}", "is no regular file, so that holes cannot stand for zeros"
        )
    writes = list(contents(plan(size, journal=journal), label, uuid))
    try:
        os.ftruncate(fd, 0)
        os.ftruncate(fd, size)
        for offset, data in writes:
            _write_all(fd, data, offset)
    except OSError as error:
        remedy = "free some space, or choose a smaller size"
        raise DiskError("make ext4", f"{size} bytes", error.strerror or str(error), remedy) from error


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count
