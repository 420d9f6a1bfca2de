"""What one member of an archive says about one file: the vocabulary between the tar reader and the tree."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """File types, numbered as in a directory entry (``DT_*`` on ext4, EROFS ``file_type``)."""

    REGULAR = 1
    DIRECTORY = 2
    CHAR = 3
    BLOCK = 4
    FIFO = 5
    SOCKET = 6
    SYMLINK = 7
    #: Not a file type: another name for a file that has one.
    HARDLINK = 8


class Segment(NamedTuple):
    """A run of stored bytes in a sparse file; what lies between segments is zeros."""

    offset: int
    length: int


NO_XATTRS: dict[bytes, bytes] = {}


class Entry(NamedTuple):
    """One member.  A named tuple, not a dataclass: there are millions, and it is five times quicker to make."""

    #: As the archive has it: not normalised, not trusted.
    name: bytes
    kind: Kind
    #: Permission, set-id and sticky bits only (07777).
    mode: int
    uid: int
    gid: int
    #: Seconds since 1970, rounded down, and the nanoseconds to add.
    mtime: int
    mtime_ns: int
    #: Length of a regular file as its reader will see it, holes included; 0 for other kinds.
    size: int
    #: Target of a symbolic link, or name of the file that a hard link is another name for.
    link: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes]
    #: Where the data that follows belongs, for a sparse file; None when it is the whole file.
    segments: tuple[Segment, ...] | None
