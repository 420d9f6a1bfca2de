"""Reading what a VMDK says of itself: its content ID, its size, and the flat files it is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from imagebuild.disk.gpt import SECTOR
from imagebuild.errors import DiskError

_MAX_TEXT = 1 << 20  # bytes of a descriptor; QEMU reads no more either
_EMBEDDED = slice(28, 44)  # place and length of an embedded descriptor in a sparse extent's header
_CONTENT_ID = re.compile(r"^CID=([0-9a-fA-F]{1,8})\s*$", re.MULTILINE)
_EXTENT = re.compile(r'^(?:RW|RDONLY) (\d{1,18}) ([A-Z]+)(?: "([^"\n]+)"(?: (\d+))?)?\s*$', re.MULTILINE)
_FLAT = ("FLAT", "VMFS")


@dataclass(frozen=True)
class FlatExtent:
    """``sectors`` sectors from the beginning of the file ``path``."""

    path: Path
    sectors: int


@dataclass(frozen=True)
class Descriptor:
    """A disk: its content ID, its size in sectors, and its files if all of its extents are flat."""

    content_id: int
    sectors: int
    flat: tuple[FlatExtent, ...]


def read_descriptor(path: Path) -> Descriptor:
    """Read the descriptor of the VMDK ``path``, its own file or within a sparse extent; DiskError if there is none."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_TEXT)
            if text.startswith(b"KDMV"):
                place, length = (int.from_bytes(text[_EMBEDDED][at : at + 8], "little") for at in (0, 8))
                text = text[place * SECTOR : (place + length) * SECTOR]
    except OSError as error:
        raise DiskError("read VMDK", str(path), error.strerror or str(error)) from error
    lines = text.partition(b"\0")[0].decode("utf-8", "replace")
    content_id, extents = _CONTENT_ID.search(lines), _EXTENT.findall(lines)
    if not content_id or not extents:
        raise DiskError("read VMDK", str(path), "has no descriptor that could be read")
    flat = tuple(
        FlatExtent(path.parent / name, int(sectors))
        for sectors, kind, name, offset in extents
        if kind in _FLAT and name and offset in ("", "0")
    )
    total = sum(int(sectors) for sectors, *_ in extents)
    return Descriptor(int(content_id[1], 16), total, flat if len(flat) == len(extents) else ())
