"""VMDK descriptors: a few hundred bytes of text that make a disk out of files which are already there.

Nothing here copies a layer.  An image's disk is a descriptor whose extents are the layer files themselves between two
small files with the partition table:

    [1 MiB: protective MBR, primary GPT][layer 1][layer 2]...[backup GPT]

Rules that keep every reader happy (each was a reader that failed): one file per extent, from its offset 0; extents
are ``RW`` because QEMU 7.2 reads ``RDONLY`` ones as zeros, and the *drive* is opened read-only instead; extent names
have no slash, so layers are reached through symbolic links beside the descriptor; the content ID stands in the first
10 KiB because that is how far QEMU looks for it in a parent.

Format: VMware "Virtual Disk Format 1.1".
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imagebuild.errors import DiskError

if TYPE_CHECKING:
    from imagebuild.disk import gpt

SECTOR = 512  # bytes
NO_PARENT = 0xFFFFFFFF  # the content ID that means "there is no parent"
DESCRIPTOR_NAME = "disk.vmdk"  # of an image disk, in its own directory
LAYER_ALIGNMENT = 4096  # bytes: the page size, and what an EROFS file is a multiple of

_FRONT_SECTORS = 2048  # 1 MiB before the first partition, as every partitioning tool leaves
_NAME_LIMIT = 511  # bytes of an extent's file name that QEMU's parser takes
_HARDWARE_VERSION = 7  # of ESX 4, the first with pvscsi


class Extent(NamedTuple):
    """A stretch of the disk: ``sectors`` sectors of the file ``name``, from the file's beginning."""

    name: str
    sectors: int
    kind: str = "FLAT"


class DiskLayer(NamedTuple):
    """A layer on its way to a disk: the file that holds it, and whose content that is (``sha256:...``)."""

    diff_id: str
    path: Path


class ImageDiskPlan(NamedTuple):
    """What an image disk will be: its extents in order, its partitions, its size in sectors, its descriptor."""

    extents: tuple[Extent, ...]
    partitions: tuple[gpt.Partition, ...]
    sectors: int
    descriptor: str


def flat(raw: str, sectors: int) -> str:
    """The descriptor of a disk that is one raw file, named ``raw``, of ``sectors`` sectors."""
    return descriptor("monolithicFlat", [Extent(raw, sectors)])


def descriptor(
    create_type: str, extents: Sequence[Extent], *, parent_cid: int = NO_PARENT, parent_hint: str = ""
) -> str:
    """The text of a descriptor; its content ID depends on the text alone, so that equal disks have equal ones."""
    for extent in extents:
        _check_name(extent.name)
    lines = [f'RW {extent.sectors} {extent.kind} "{extent.name}"' for extent in extents]
    lines = [line + " 0" if extent.kind == "FLAT" else line for line, extent in zip(lines, extents, strict=True)]
    sectors = sum(extent.sectors for extent in extents)
    identity = hashlib.sha256(f"{create_type} {parent_cid:08x} {lines}".encode()).digest()
    hint = f'parentFileNameHint="{parent_hint}"\n' if parent_hint else ""
    return (
        "# Disk DescriptorFile\n"
        "version=1\n"
        'encoding="UTF-8"\n'
        f"CID={content_id(identity):08x}\n"
        f"parentCID={parent_cid:08x}\n"
        f'createType="{create_type}"\n'
        f"{hint}"
        "\n# Extents\n" + "\n".join(lines) + "\n\n# Disk Data Base\n#DDB\n"
        f"{_geometry(sectors)}"
        'ddb.adapterType = "lsilogic"\n'
        f'ddb.virtualHWVersion = "{_HARDWARE_VERSION}"\n'
    )


def plan_image_disk(layers: Sequence[tuple[str, int]]) -> ImageDiskPlan:
    """Plan one disk from ``(diff_id, bytes)`` of its layers, lowest first: partition n (from 1) is layer n.

    Raises DiskError for a size that is no multiple of 4 KiB, a layer given twice, or more layers than a table holds.
    """
    from imagebuild.disk import gpt  # late: the disk of an image is made once

    extents = [Extent("gpt-primary.img", _FRONT_SECTORS)]
    partitions = []
    at = _FRONT_SECTORS
    for index, (diff_id, size) in enumerate(layers, start=1):
        if size <= 0 or size % LAYER_ALIGNMENT:
            raise DiskError("image disk", diff_id, f"its file has {size} bytes, no multiple of {LAYER_ALIGNMENT}")
        sectors = size // SECTOR
        extents.append(Extent(f"layer-{index:03}.erofs", sectors))
        partitions.append(gpt.Partition(at, sectors, gpt.layer_guid(diff_id), gpt.layer_name(diff_id)))
        at += sectors
    if len({partition.guid for partition in partitions}) < len(partitions):
        cause = "a layer appears twice, and two partitions cannot have one name"
        raise DiskError("image disk", "layers", cause, "keep the topmost of equal layers only")
    # Rounded up, so that the disk's size is a multiple of 4 KiB; the table stands in the last sectors.
    back = _round_up(gpt.backup_sectors(len(partitions)), LAYER_ALIGNMENT // SECTOR)
    extents.append(Extent("gpt-backup.img", back))
    text = descriptor("twoGbMaxExtentFlat", extents)
    return ImageDiskPlan(tuple(extents), tuple(partitions), at + back, text)


def image_disk(layers: Sequence[DiskLayer], directory: Path, *, links_from: Path | None = None) -> Path:
    """Make an image's disk in the existing, empty ``directory`` and return its descriptor's path.

    The layer files stay where they are; ``directory`` gets relative symbolic links to them, as they are right in
    ``links_from`` if the directory is to be moved there.  The descriptor is written last, so that a directory with a
    descriptor is a whole disk.
    """
    plan = plan_image_disk([(layer.diff_id, layer.path.stat().st_size) for layer in layers])
    for extent, layer in zip(plan.extents[1:-1], layers, strict=True):
        (directory / extent.name).symlink_to(os.path.relpath(layer.path, links_from or directory))
    for name, content in table_files(plan).items():
        (directory / name).write_bytes(content.rstrip(b"\0"))
        os.truncate(directory / name, len(content))
    path = directory / DESCRIPTOR_NAME
    path.write_text(plan.descriptor)
    return path


def table_files(plan: ImageDiskPlan) -> dict[str, bytes]:
    """The two files with the partition table, by name."""
    from imagebuild.disk import gpt

    front, back = plan.extents[0], plan.extents[-1]
    return {
        front.name: gpt.primary(plan.partitions, plan.sectors).ljust(front.sectors * SECTOR, b"\0"),
        back.name: gpt.backup(plan.partitions, plan.sectors).rjust(back.sectors * SECTOR, b"\0"),
    }


def layer_disks(layers: Sequence[DiskLayer], directory: Path) -> list[Path]:
    """Make one disk per layer, without partition tables, in the existing, empty ``directory``; lowest layer first.

    For hosts that share read-only disks by the file (vSphere), where an image's disk of many extents has no equal.
    """
    paths = []
    for index, layer in enumerate(layers, start=1):
        size = layer.path.stat().st_size
        if size <= 0 or size % SECTOR:
            raise DiskError("layer disk", str(layer.path), f"has {size} bytes, no multiple of {SECTOR}")
        raw = f"layer-{index:03}-flat.vmdk"
        (directory / raw).symlink_to(os.path.relpath(layer.path, directory))
        path = directory / f"layer-{index:03}.vmdk"
        path.write_text(flat(raw, size // SECTOR))
        paths.append(path)
    return paths


def content_id(identity: bytes) -> int:
    """A content ID out of a digest; never one of the values with a meaning of their own."""
    number = int.from_bytes(identity[:4], "big")
    return number if 0 < number < NO_PARENT - 1 else 1


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _geometry(sectors: int) -> str:
    """Cylinders, heads and sectors as VMware counts them for SCSI; no modern system uses them, but tools ask."""
    heads, per_track = (64, 32) if sectors < 2 << 20 else (255, 63)
    return (
        f'ddb.geometry.cylinders = "{max(1, sectors // (heads * per_track))}"\n'
        f'ddb.geometry.heads = "{heads}"\n'
        f'ddb.geometry.sectors = "{per_track}"\n'
    )


def _check_name(name: str) -> None:
    if not name or len(os.fsencode(name)) > _NAME_LIMIT or any(character in name for character in '"\n\r'):
        raise DiskError("disk descriptor", repr(name), "is no name that a descriptor can hold")
