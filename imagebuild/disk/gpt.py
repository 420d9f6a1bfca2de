"""A GUID partition table, made in memory: pure functions, bytes out (UEFI specification 2.10, chapter 5).

The table of an image disk is worked out from its layers alone: the same layers give the same bytes on every host, and a
layer's partition carries the layer's diff ID twice, as the partition's GUID (PARTUUID) and as its name (PARTNAME in
the kernel's uevent), so that a guest can find a layer without counting.
"""

import hashlib
import struct
import uuid
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from imagebuild.errors import DiskError

SECTOR = 512  # bytes; what SCSI, virtio-blk and VMDK count in
ENTRY_SIZE = 128
MIN_ENTRIES = 128  # the least that the specification allows, and what every tool expects
MAX_PARTITIONS = 255  # Linux numbers no more on one disk
NAME_UNITS = 36  # UTF-16 code units of a partition's name

LINUX_DATA = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")  # type "Linux filesystem data"

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_REVISION = 0x00010000
_MBR_TYPE_GPT = 0xEE
_MBR_MAX_SECTORS = 0xFFFFFFFF  # a larger disk says "as many as fit" in its protective record


class Partition(NamedTuple):
    """One partition: its first sector, its length in sectors, its own GUID, its name and what it is for."""

    first: int
    sectors: int
    guid: uuid.UUID
    name: str
    kind: uuid.UUID = LINUX_DATA


def entry_count(partitions: int) -> int:
    """How many entries a table for so many partitions has: the usual 128, or twice that."""
    return MIN_ENTRIES if partitions <= MIN_ENTRIES else 2 * MIN_ENTRIES


def primary_sectors(partitions: int) -> int:
    """The length in sectors of what precedes the first partition: protective MBR, header, entries."""
    return 2 + entry_count(partitions) * ENTRY_SIZE // SECTOR


def backup_sectors(partitions: int) -> int:
    """The length in sectors of the disk's end: entries, header."""
    return entry_count(partitions) * ENTRY_SIZE // SECTOR + 1


def layer_guid(diff_id: str) -> uuid.UUID:
    """The GUID of the partition that holds a layer: the first 128 bits of its diff ID, marked as a UUID.

    Six bits give way to the marks of a custom UUID (version 8, RFC 9562), so the first twelve digits can be compared by
    eye with the diff ID.  ``diff_id`` is ``algorithm:hex`` with at least 32 hexadecimal digits.
    """
    digits = diff_id.partition(":")[2]
    try:
        number = int(digits[:32].ljust(32, "?"), 16)
    except ValueError:
        raise DiskError("partition table", diff_id, "not a digest of at least 128 bits") from None
    number = number & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62
    return uuid.UUID(int=number)


def layer_name(diff_id: str) -> str:
    """The name of the partition that holds a layer: ``layer-`` and the diff ID's first 30 digits (120 bits)."""
    return "layer-" + diff_id.partition(":")[2][: NAME_UNITS - len("layer-")]


def disk_guid(partitions: Sequence[Partition]) -> uuid.UUID:
    """A GUID for the whole disk that depends on what the disk holds and in which order, and on nothing else."""
    return uuid.UUID(bytes=hashlib.sha256(b"".join(p.guid.bytes for p in partitions)).digest()[:16], version=4)


def primary(partitions: Sequence[Partition], total_sectors: int) -> bytes:
    """The first ``primary_sectors`` sectors of a disk of ``total_sectors``: protective MBR, header, entries."""
    _check(partitions, total_sectors)
    entries = _entries(partitions)
    header = _header(partitions, total_sectors, entries, here=1, other=total_sectors - 1, entries_at=2)
    return _protective_mbr(total_sectors) + header + entries


def backup(partitions: Sequence[Partition], total_sectors: int) -> bytes:
    """The last ``backup_sectors`` sectors of a disk of ``total_sectors``: entries, then the header."""
    _check(partitions, total_sectors)
    entries = _entries(partitions)
    at = total_sectors - backup_sectors(len(partitions))
    return entries + _header(partitions, total_sectors, entries, here=total_sectors - 1, other=1, entries_at=at)


def _check(partitions: Sequence[Partition], total_sectors: int) -> None:
    if len(partitions) > MAX_PARTITIONS:
        remedy = "squash the image, or give the machine one disk per layer"
        cause = f"{len(partitions)} partitions, and a disk holds {MAX_PARTITIONS}"
        raise DiskError("partition table", "image disk", cause, remedy)
    end = primary_sectors(len(partitions))
    for partition in sorted(partitions, key=lambda p: p.first):
        if partition.first < end or partition.sectors < 1:
            raise DiskError("partition table", partition.name, "overlaps what is before it, or is empty")
        end = partition.first + partition.sectors
    if end > total_sectors - backup_sectors(len(partitions)):
        raise DiskError("partition table", "image disk", f"{total_sectors} sectors do not hold its partitions")


def _protective_mbr(total_sectors: int) -> bytes:
    """An MBR with one partition over everything, so that tools that know no GPT see a disk in use."""
    sectors = min(total_sectors - 1, _MBR_MAX_SECTORS)
    record = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", _MBR_TYPE_GPT, b"\xff\xff\xff", 1, sectors)
    return bytes(446) + record + bytes(48) + b"\x55\xaa"


def _entries(partitions: Sequence[Partition]) -> bytes:
    entries = b"".join(
        struct.pack(
            "<16s16sQQQ72s",
            partition.kind.bytes_le,
            partition.guid.bytes_le,
            partition.first,
            partition.first + partition.sectors - 1,
            0,
            partition.name.encode("utf-16-le")[: 2 * NAME_UNITS],
        )
        for partition in partitions
    )
    return entries.ljust(entry_count(len(partitions)) * ENTRY_SIZE, b"\0")


def _header(
    partitions: Sequence[Partition], total_sectors: int, entries: bytes, *, here: int, other: int, entries_at: int
) -> bytes:
    """One header sector; its CRC is counted over the header with the CRC's own field zero."""

    def pack(crc: int) -> bytes:
        return _HEADER.pack(
            b"EFI PART",
            _REVISION,
            _HEADER.size,
            crc,
            0,
            here,
            other,
            primary_sectors(len(partitions)),
            total_sectors - backup_sectors(len(partitions)) - 1,
            disk_guid(partitions).bytes_le,
            entries_at,
            entry_count(len(partitions)),
            ENTRY_SIZE,
            zlib.crc32(entries),
        )

    return pack(zlib.crc32(pack(0))).ljust(SECTOR, b"\0")
