"""How much of anything a layer may ask for before it is refused.

A layer comes from a registry and is hostile until checked.  Every number here bounds memory, disk space or time; each
default is far above what real images contain and far below what hurts.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

#: The longest file name Linux holds in a directory entry (NAME_MAX), in bytes.
NAME_MAX = 255

#: The longest path one system call takes (PATH_MAX less its NUL), in bytes.  Unpackers fail beyond it, so do we.
PATH_MAX = 4095


@dataclass(frozen=True)
class Limits:
    """Bounds for one layer.  Sizes are bytes, the rest are counts."""

    #: Files, directories, links and whiteouts.  One costs about 400 bytes of memory here.
    entries: int = 1_000_000
    #: Names, link targets and extended attributes of all entries together; they are held until the end.
    metadata_bytes: int = 256 * MIB
    #: Components of names looked up, symbolic links followed included: seconds of time, unless names are all a maze.
    path_steps: int = 50_000_000
    #: One PAX header or one GNU long name.  Go's archive/tar stops at 1 MiB; forty large xattrs need more.
    header_bytes: int = 4 * MIB
    #: Data segments of one sparse file.
    sparse_segments: int = 1 << 17
    #: The tar stream after decompression.
    expanded_bytes: int = 64 * GIB
    #: Tar bytes per compressed byte, looked at once ``ratio_floor`` bytes came out.  DEFLATE's own ceiling is 1032,
    #: and a layer with one file of zeros reaches it honestly; zstd can go a hundred times further.
    ratio: int = 1100
    ratio_floor: int = 1 * GIB
    #: The finished image, holes included: the guest sees a disk of this size.
    image_bytes: int = 1024 * GIB
