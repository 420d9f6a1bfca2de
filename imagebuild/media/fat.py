"""A FAT16 volume, planned rather than written: its metadata, and where in it each file's content belongs.

The firmware of a UEFI machine reads its loader, and the loader its kernel, from a FAT volume.  On our ISO that volume
shares the content of its files with the ISO 9660 file system, which names the same bytes: so contents begin on
multiples of `CONTENT_ALIGNMENT`, one after the other, and the caller puts them there.

FAT16 always: UEFI firmware tells FAT12, 16 and 32 apart by the number of clusters alone, and 4085 to 65524 of them fit
what El Torito can describe.  Sources: Microsoft's "FAT32 File System Specification" 1.03 (which covers FAT16 and long
names), and the UEFI specification 2.10, 13.3.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from imagebuild.errors import MediaError

SECTOR = 512
CONTENT_ALIGNMENT = 2048  # a block of ISO 9660
_ALIGNED = CONTENT_ALIGNMENT // SECTOR
_CLUSTER_SECTORS = (4, 2, 1)  # tried in this order; the largest is the shortest table
_MIN_CLUSTERS = 4085 + 16  # fewer is FAT12; the specification asks to stay 16 away from the boundary
_MAX_CLUSTERS = 65524 - 16
_FATS = 2
_ROOT_ENTRIES = 64  # one block
_ROOT_SECTORS = _ROOT_ENTRIES * 32 // SECTOR
_GEOMETRY = (32, 64)  # sectors a track, heads: asked for by the format, used by nobody
_END = 0xFFFF
_MEDIA = 0xF8  # "fixed disk"
_READ_ONLY, _LABEL, _DIRECTORY, _ARCHIVE = 0x01, 0x08, 0x10, 0x20
_LONG_NAME = 0x0F
_LONG_UNITS = 13  # UTF-16 units of a long name in one entry
_SHORT = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")  # what we leave in short names, of what is allowed
_FAT_EPOCH = 315532800  # 1980-01-01 in seconds since 1970: FAT knows nothing before


@dataclass(frozen=True)
class Volume:
    """A planned volume: `head` is all of it before the first content, `offsets` says where each file's content begins
    and `size` how long the volume is, both in bytes."""

    head: bytes
    offsets: Mapping[str, int]
    size: int


@dataclass
class _Node:
    """A directory (with entries) or a file, and the clusters it has."""

    size: int = 0
    entries: dict[str, _Node] | None = None
    first: int = 0
    clusters: int = 0


def plan_volume(files: Sequence[tuple[str, int]], *, label: str, serial: int, epoch: int, limit: int) -> Volume:
    """Plan a volume of `files`, each a path ("EFI/BOOT/BOOTX64.EFI") and its size in bytes, contents in this order.

    `serial` is the 32-bit volume number, `epoch` every time stamp (seconds since 1970), `limit` the largest size in
    bytes.  Raises MediaError if the files do not fit.
    """
    content = sum(_up(size, CONTENT_ALIGNMENT) for _, size in files)
    per_cluster = next((sectors for sectors in _CLUSTER_SECTORS if content // (sectors * SECTOR) >= _MIN_CLUSTERS), 1)
    root = _tree(files)
    used = _place(root, files, per_cluster)
    clusters = max(used, _MIN_CLUSTERS)
    fat_sectors = _up((clusters + 2) * 2, SECTOR) // SECTOR
    fixed = _FATS * fat_sectors + _ROOT_SECTORS
    reserved = 1 + -(1 + fixed) % _ALIGNED  # so that the first cluster stands on a block
    data = (reserved + fixed) * SECTOR
    size = data + _up(clusters * per_cluster * SECTOR, CONTENT_ALIGNMENT)
    if size > limit or clusters > _MAX_CLUSTERS:
        raise MediaError("plan boot volume", label, f"its files need {size >> 20} MiB, and {limit >> 20} fit",
                         "use a smaller kernel (--kernel pico)")
    boot = _boot_sector(_Shape(per_cluster, reserved, fat_sectors, size // SECTOR), label, serial)
    table = _table(root, clusters).ljust(fat_sectors * SECTOR, b"\0")
    folders = _folders(root, per_cluster * SECTOR, label, epoch)
    head = boot.ljust(reserved * SECTOR, b"\0") + table * _FATS + folders
    at = {path: data + (_find(root, path).first - 2) * per_cluster * SECTOR for path, _ in files}
    return Volume(head.ljust(_up(len(head), CONTENT_ALIGNMENT), b"\0"), at, size)


def _tree(files: Iterable[tuple[str, int]]) -> _Node:
    root = _Node(entries={})
    for path, size in files:
        *parents, name = path.split("/")
        folder = root
        for parent in parents:
            assert folder.entries is not None
            folder = folder.entries.setdefault(parent, _Node(entries={}))
        if folder.entries is None or name in folder.entries or not all([*parents, name]):
            raise MediaError("plan boot volume", path, "the path is no path, or given twice")
        folder.entries[name] = _Node(size)
    return root


def _place(root: _Node, files: Sequence[tuple[str, int]], per_cluster: int) -> int:
    """Give every directory, then every file its clusters (numbered from 2); the number of clusters up to the end."""
    bytes_each = per_cluster * SECTOR
    step = max(1, CONTENT_ALIGNMENT // bytes_each)
    at = 0
    for folder in _subfolders(root):
        assert folder.entries is not None
        length = 2 * 32 + sum(32 * (1 + len(_long_entries(name))) for name in folder.entries)
        folder.first, folder.clusters = at + 2, -(-length // bytes_each)
        at += folder.clusters
    for path, size in files:
        at = _up(at, step)
        node = _find(root, path)
        node.first, node.clusters = at + 2, -(-size // bytes_each)
        at += node.clusters
    return _up(at, step)


def _find(root: _Node, path: str) -> _Node:
    node = root
    for part in path.split("/"):
        assert node.entries is not None
        node = node.entries[part]
    return node


def _subfolders(folder: _Node) -> list[_Node]:
    """All directories below one, parents first."""
    found = []
    for node in (folder.entries or {}).values():
        if node.entries is not None:
            found += [node, *_subfolders(node)]
    return found


@dataclass(frozen=True)
class _Shape:
    """Sectors a cluster, before the tables, of one table, and in all."""

    per_cluster: int
    reserved: int
    fat: int
    total: int


def _boot_sector(shape: _Shape, label: str, serial: int) -> bytes:
    """The BIOS parameter block; nobody boots from it, so that its code is an endless loop."""
    small = shape.total if shape.total < 0x10000 else 0  # the total has two fields, of which one is 0
    block = struct.pack("<3s8sHBHBHHBHHHII", b"\xeb\x3c\x90", b"VCH     ", SECTOR, shape.per_cluster, shape.reserved,
                        _FATS, _ROOT_ENTRIES, small, _MEDIA, shape.fat, *_GEOMETRY, 0, 0 if small else shape.total)
    extended = struct.pack("<BBBI11s8s", 0x80, 0, 0x29, serial, _label(label), b"FAT16   ")
    return (block + extended + b"\xeb\xfe").ljust(510, b"\0") + b"\x55\xaa"


def _table(root: _Node, clusters: int) -> bytes:
    """One file allocation table: every chain is a run of neighbours."""
    entries = [0] * (clusters + 2)
    entries[0], entries[1] = 0xFF00 | _MEDIA, _END

    def chain(node: _Node) -> None:
        for cluster in range(node.first, node.first + node.clusters):
            last = cluster == node.first + node.clusters - 1
            entries[cluster] = _END if last else cluster + 1
        for child in (node.entries or {}).values():
            chain(child)

    chain(root)
    return struct.pack(f"<{len(entries)}H", *entries)


def _folders(root: _Node, cluster_bytes: int, label: str, epoch: int) -> bytes:
    """The root directory, then the clusters of all others in their order."""
    name = _entry(_label(label), _LABEL, 0, 0, epoch)
    parts = [(name + _listing(root, epoch)).ljust(_ROOT_SECTORS * SECTOR, b"\0")]
    if len(parts[0]) > _ROOT_SECTORS * SECTOR:
        raise MediaError("plan boot volume", label, f"its root directory has more than {_ROOT_ENTRIES} entries")

    def walk(folder: _Node) -> None:
        for node in (folder.entries or {}).values():
            if node.entries is not None:
                dots = _entry(b".          ", _DIRECTORY, node.first, 0, epoch)
                dots += _entry(b"..         ", _DIRECTORY, folder.first, 0, epoch)
                parts.append((dots + _listing(node, epoch)).ljust(node.clusters * cluster_bytes, b"\0"))
                walk(node)

    walk(root)
    return b"".join(parts)


def _listing(folder: _Node, epoch: int) -> bytes:
    """The entries of a directory, long names before the entry they belong to."""
    parts = []
    taken: set[bytes] = set()
    for name, node in (folder.entries or {}).items():
        short = _short_name(name, taken)
        taken.add(short)
        parts += _long_entries(name, _checksum(short))
        kind = _ARCHIVE | _READ_ONLY if node.entries is None else _DIRECTORY
        parts.append(_entry(short, kind, node.first if node.clusters else 0, node.size, epoch))
    return b"".join(parts)


def _entry(short: bytes, attributes: int, first: int, size: int, epoch: int) -> bytes:
    moment = time.gmtime(max(epoch, _FAT_EPOCH))
    clock = moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2
    day = moment.tm_year - 1980 << 9 | moment.tm_mon << 5 | moment.tm_mday
    return struct.pack("<11sBBBHHHHHHHI", short, attributes, 0, 0, clock, day, day, 0, clock, day, first, size)


def _fits_short(name: str) -> bool:
    """Whether a name, in capitals, is an 8.3 name.  The firmware does not tell capitals from small letters."""
    stem, _, suffix = name.partition(".")
    letters = (stem + suffix).upper().encode("utf-8")
    return 0 < len(stem) <= 8 and len(suffix) <= 3 and "." not in suffix and _SHORT.issuperset(letters)


def _short_name(name: str, taken: set[bytes]) -> bytes:
    """The eleven bytes of the 8.3 name: the name itself, or an alias that the directory does not have yet."""
    stem, _, suffix = name.rpartition(".") if "." in name else (name, "", "")
    if _fits_short(name):
        return stem.upper().encode().ljust(8) + suffix.upper().encode().ljust(3)
    letters = bytes(byte for byte in stem.upper().encode() if byte in _SHORT)
    ending = bytes(byte for byte in suffix.upper().encode() if byte in _SHORT)[:3].ljust(3)
    for number in range(1, 1000):
        tail = b"~%d" % number
        alias = (letters[: 8 - len(tail)] + tail).ljust(8) + ending
        if alias not in taken:
            return alias
    raise MediaError("plan boot volume", name, "too many long names begin alike")


def _long_entries(name: str, checksum: int = 0) -> list[bytes]:
    """The entries of a long name, last part first; none for a name that is an 8.3 name."""
    if _fits_short(name):
        return []
    units = name.encode("utf-16-le")
    if len(units) % (2 * _LONG_UNITS):
        units += b"\0\0"
    parts = [units[at : at + 2 * _LONG_UNITS] for at in range(0, len(units), 2 * _LONG_UNITS)]
    entries = []
    for number, part in enumerate(parts, 1):
        full = part.ljust(2 * _LONG_UNITS, b"\xff")
        order = number | (0x40 if number == len(parts) else 0)
        entries.append(struct.pack("<B10sBBB12sH4s", order, full[:10], _LONG_NAME, 0, checksum, full[10:22], 0,
                                   full[22:]))
    return entries[::-1]


def _checksum(short: bytes) -> int:
    """Ties a long name to the entry it belongs to."""
    total = 0
    for byte in short:
        total = ((total >> 1 | total << 7) + byte) & 0xFF
    return total


def _label(text: str) -> bytes:
    return text.upper().encode("ascii", "replace")[:11].ljust(11)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
