"""One member of an archive."""

from tether.faults import TetherError
from tether.link.record import Record

# Types of members, as in the header's typeflag (POSIX.1-2017 pax, "ustar Interchange Format").
FILE, HARD_LINK, SYMLINK, CHAR, BLOCK_DEVICE, FOLDER, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"

BLOCK = 512


class ArchiveError(TetherError):
    """An archive is damaged, hostile, or says what cannot be done; `what` names the member."""


class Segment(Record):
    """A run of a sparse file's bytes that are stored; what lies between is zeros."""

    offset: int
    length: int


class Entry(Record):
    """What a member says of one file; names as bytes, as the archive has them."""

    name: bytes
    kind: bytes = FILE
    mode: int = 0o644  # permissions, set-id and sticky bits
    uid: int = 0
    gid: int = 0
    size: int = 0  # of a file as its reader sees it, holes included
    mtime_ns: int = 0
    link: bytes = b""  # what a symbolic link says; the member that a hard link is another name of
    device: int = 0  # os.makedev
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    segments: tuple[Segment, ...] | None = None  # None: the whole file is stored


def padding(length: int) -> int:
    """Bytes from the end of a member's data to the next block."""
    return -length % BLOCK
