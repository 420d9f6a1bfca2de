"""An ISO that starts on BIOS and UEFI, as a CD-ROM and as a disk: planned as a list of pieces, then written.

    sector area   partition tables and a disk's boot code         (hybrid.py)
    block 16      ISO 9660 metadata, El Torito boot catalog       (iso9660.py)
    ...           isolinux: starts on BIOS
    ...           head of the FAT volume                          (fat.py)
    ...           systemd-boot, its two text files, the kernel and the initramfs: once, named by both file systems
    ...           what the caller adds: a spec, image layers
    last blocks   backup of the partition table

Nothing depends on the clock, on the host or on where it is made: the same parts are the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imagebuild.errors import MediaError
from imagebuild.media import fat, hybrid, iso9660
from imagebuild.media.bootloader import Bootloader
from imagebuild.media.iso9660 import BLOCK, Extent
from imagebuild.newfile import NewFile

CONSOLE = "console=ttyS0,115200"
ARGUMENTS = (CONSOLE, "quiet")
SPEC_PATH = "vch/spec.json"
# Tells the agent to look for the spec in the properties that vSphere gives the VM, which whoever deploys an OVA can
# change, and then on the medium of this label.
SPEC_ARGUMENT = "tether.spec=guestinfo,iso:{}"
_KERNEL, _INITRAMFS = "vmlinuz", "initrd.img"
_EFI_LABEL = "VCH EFI"
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Content:
    """The content of a file on the ISO: bytes at hand, or a file.  `identity` stands for the content of a large file
    (its digest, say), so that nothing is read twice."""

    data: bytes | Path
    identity: bytes = b""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.data.stat().st_size if isinstance(self.data, Path) else len(self.data)

    def digest(self) -> bytes:
        """What tells it from every other content."""
        return hashlib.sha256(self.identity or (
            self.data.read_bytes() if isinstance(self.data, Path) else self.data)).digest()


@dataclass(frozen=True)
class Recipe:
    """What goes in.  `files` are additional ones, path -> content; with a spec among them the agent is told to read it.

    `epoch` is every time stamp (seconds since 1970); `max_bytes` what the medium holds; the size becomes a multiple of
    `granule` (bytes, a multiple of a block).
    """

    kernel: bytes
    initramfs: bytes
    bootloader: Bootloader
    epoch: int
    max_bytes: int
    arguments: tuple[str, ...] = ARGUMENTS
    files: Mapping[str, Content] = field(default_factory=dict)
    granule: int = BLOCK


@dataclass(frozen=True)
class Piece:
    """A content of so many bytes that begins at `block`."""

    block: int
    size: int
    data: bytes | Path


@dataclass(frozen=True)
class IsoPlan:
    """Where everything is.  `pieces` are in order of place; what is between them is zero."""

    label: str
    blocks: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of the ISO."""
        return self.blocks * BLOCK


def plan_iso(recipe: Recipe) -> IsoPlan:
    """Lay everything out.  Raises MediaError for what does not fit."""
    identity = _identity(recipe)
    label = f"VCH_{identity.hex()[:12].upper()}"
    line = " ".join([*recipe.arguments, *([SPEC_ARGUMENT.format(label)] if SPEC_PATH in recipe.files else [])])
    shared = {name: Content(data) for name, data in _efi_files(recipe, line).items()}
    bios = {name: Content(data) for name, data in _bios_files(recipe, line).items()}
    volume = fat.plan_volume([(name, content.size) for name, content in shared.items()], label=_EFI_LABEL,
                             serial=int.from_bytes(identity[:4], "big"), epoch=recipe.epoch,
                             limit=iso9660.MAX_BOOT_IMAGE)
    sizes = {name: Extent(0, content.size) for name, content in {**bios, **shared, **recipe.files}.items()}
    at = iso9660.FIRST_BLOCK + iso9660.metadata_blocks(sizes)
    places: dict[str, Extent] = {}
    for name, content in bios.items():
        places[name] = Extent(at, content.size)
        at += _blocks(content.size)
    efi = Extent(at, volume.size)
    for name, content in shared.items():
        places[name] = Extent(efi.block + volume.offsets[name] // BLOCK, content.size)
    at += _blocks(volume.size)
    for name, content in recipe.files.items():
        places[name] = Extent(at, content.size)
        at += _blocks(content.size)
    blocks = _up(at + hybrid.TAIL_BLOCKS, recipe.granule // BLOCK)
    _check_size(blocks * BLOCK, recipe.max_bytes)
    start = places["isolinux/isolinux.bin"]
    bios["isolinux/isolinux.bin"] = Content(iso9660.with_boot_information(recipe.bootloader.isolinux, start.block))
    description = iso9660.Volume(label, recipe.epoch, blocks, start, efi)
    contents = {**bios, **shared, **recipe.files}
    pieces = [
        _piece(0, hybrid.system_area(recipe.bootloader.disk_code, start, efi, blocks, identity)),
        _piece(iso9660.FIRST_BLOCK, iso9660.metadata(places, description)),
        _piece(efi.block, volume.head),
        *(Piece(place.block, place.size, contents[name].data) for name, place in places.items()),
        _piece(blocks - hybrid.TAIL_BLOCKS, hybrid.tail(efi, blocks, identity)),
    ]
    return IsoPlan(label, blocks, tuple(sorted(pieces, key=lambda piece: piece.block)))


def write_iso(plan: IsoPlan, path: Path) -> None:
    """Write an ISO, whole or not at all.  Raises MediaError for a file that changed, StoreError for a full disk."""
    with NewFile(path, "ISO", output=True) as file:
        os.ftruncate(file.fd, plan.size)
        for piece in plan.pieces:
            os.lseek(file.fd, piece.block * BLOCK, os.SEEK_SET)
            _copy(piece, file.fd)
        file.commit()


def _piece(block: int, data: bytes) -> Piece:
    return Piece(block, len(data), data)


def _copy(piece: Piece, into: int) -> None:
    if isinstance(piece.data, bytes):
        view = memoryview(piece.data)
        while view:
            view = view[os.write(into, view) :]
        return
    with piece.data.open("rb") as file:
        if os.fstat(file.fileno()).st_size != piece.size:
            raise MediaError("write ISO", str(piece.data), "the file has changed meanwhile", "try again")
        left = piece.size
        while left and (sent := os.sendfile(into, file.fileno(), None, min(left, _COPY_BYTES))):
            left -= sent
        if left:
            raise MediaError("write ISO", str(piece.data), "the file became shorter meanwhile", "try again")


def _efi_files(recipe: Recipe, line: str) -> dict[str, bytes]:
    """What the FAT volume has: systemd-boot, what it boots, and the Boot Loader Specification's entry for it."""
    entry = f"title container VM\nlinux /{_KERNEL}\ninitrd /{_INITRAMFS}\noptions {line}\n"
    return {
        "EFI/BOOT/BOOTX64.EFI": recipe.bootloader.efi,
        "loader/loader.conf": b"default vch.conf\ntimeout 0\n",
        "loader/entries/vch.conf": entry.encode(),
        _KERNEL: recipe.kernel,
        _INITRAMFS: recipe.initramfs,
    }


def _bios_files(recipe: Recipe, line: str) -> dict[str, bytes]:
    """What isolinux needs."""
    config = f"default vch\nprompt 0\nlabel vch\n  kernel /{_KERNEL}\n  initrd /{_INITRAMFS}\n  append {line}\n"
    return {
        "isolinux/isolinux.bin": recipe.bootloader.isolinux,
        "isolinux/ldlinux.c32": recipe.bootloader.ldlinux,
        "isolinux/isolinux.cfg": config.encode(),
    }


def _identity(recipe: Recipe) -> bytes:
    """A digest of everything that goes in: the label, and the numbers that disks must have, are made of it."""
    digest = hashlib.sha256(repr((recipe.epoch, recipe.arguments)).encode())
    loader = recipe.bootloader
    for data in (recipe.kernel, recipe.initramfs, loader.isolinux, loader.ldlinux, loader.disk_code, loader.efi):
        digest.update(hashlib.sha256(data).digest())
    for name, content in recipe.files.items():
        digest.update(hashlib.sha256(name.encode()).digest() + content.digest())
    return digest.digest()


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise MediaError("plan ISO", f"{size:,} bytes", f"the medium holds {limit:,}",
                         "choose a larger one with --max-size, or a smaller image")


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
