"""An OVA: a tar of an OVF descriptor, its manifest, and what the machine starts from, in this order (DSP0243, 5.3).

The manifest has the SHA-256 digest of each file.  Everything in the tar belongs to root and has one time stamp, so
that the same parts are the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import tempfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from imagebuild.disk.gpt import SECTOR
from imagebuild.disk.vmdk_read import FlatExtent
from imagebuild.disk.vmdk_sparse import write_stream_optimized
from imagebuild.errors import MediaError
from imagebuild.media.iso import IsoPlan, write_iso
from imagebuild.media.ovf import BootFile, VirtualMachine, descriptor
from imagebuild.newfile import NewFile

MAX_FILE_BYTES = 8 << 30  # sizes in a ustar header are eleven octal digits, and OVF wants ustar
DISK_ALIGNMENT = 1 << 20  # what importers round the size of a disk up to
_VMDK_LEVEL = 6  # smaller than the default, because an OVA is made once and copied often
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
MIN_MEMORY_MIB, MAX_CPUS = 64, 64


class Drive(Enum):
    """What the machine starts from: a disk takes any importer, the ISO can be looked into and exchanged."""

    DISK = "disk"
    CD = "cd"


class Firmware(Enum):
    """As vSphere names them."""

    BIOS = "bios"
    EFI = "efi"


@dataclass(frozen=True)
class Machine:
    """What is asked for besides the ISO's content."""

    memory_mib: int = 256
    cpus: int = 1
    drive: Drive = Drive.DISK
    firmware: Firmware = Firmware.EFI


def write_ova(plan: IsoPlan, machine: Machine, spec: str, epoch: int, path: Path) -> None:
    """Write an OVA, whole or not at all.  `spec` is the ISO's in one line, or nothing.

    For a disk the plan's size must be a multiple of DISK_ALIGNMENT.  Raises MediaError, and StoreError for a full disk.
    """
    name = path.stem
    if path.suffix != ".ova" or not _NAME.fullmatch(name):
        raise MediaError("write OVA", str(path), "an importer would not take this name",
                         "use letters, digits, '.', '-' and '_', with .ova at the end")
    if machine.memory_mib < MIN_MEMORY_MIB or not 1 <= machine.cpus <= MAX_CPUS:
        raise MediaError("write OVA", str(path), f"{machine.memory_mib} MiB and {machine.cpus} CPUs make no machine",
                         f"at least {MIN_MEMORY_MIB} MiB, 1 to {MAX_CPUS} CPUs")
    with (
        NewFile(path, "OVA", output=True) as new,
        tempfile.TemporaryDirectory(prefix=".ova-", dir=path.parent) as scratch,
    ):
        boot = _boot_file(plan, machine.drive, Path(scratch), name)
        size = boot.stat().st_size
        if size >= MAX_FILE_BYTES:
            raise MediaError("write OVA", boot.name, f"{size:,} bytes do not fit into a tar of OVF's kind",
                             "use a smaller image")
        described = BootFile(boot.name, size, plan.size if machine.drive is Drive.DISK else 0)
        properties = (("vch.spec", "What the container is, as JSON", spec),) if spec else ()
        virtual = VirtualMachine(name, described, machine.memory_mib, machine.cpus, machine.firmware.value, properties)
        _write_tar(new.fd, _ovf_files(name, descriptor(virtual).encode(), boot), boot, epoch)
        new.commit()


def manifest(digests: dict[str, str]) -> bytes:
    """The text of the .mf file: file name -> SHA-256 in hexadecimal (DSP0243, 5.1)."""
    return "".join(f"SHA256({name})= {digest}\n" for name, digest in digests.items()).encode()


def _boot_file(plan: IsoPlan, drive: Drive, scratch: Path, name: str) -> Path:
    iso = scratch / f"{name}.iso"
    write_iso(plan, iso)
    if drive is Drive.CD:
        return iso
    disk = scratch / f"{name}-disk1.vmdk"
    write_stream_optimized([FlatExtent(iso, plan.size // SECTOR)], disk, level=_VMDK_LEVEL)
    iso.unlink()
    return disk


def _ovf_files(name: str, text: bytes, boot: Path) -> dict[str, bytes]:
    """The descriptor and the manifest, by name."""
    with boot.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    listed = {f"{name}.ovf": hashlib.sha256(text).hexdigest(), boot.name: digest}
    return {f"{name}.ovf": text, f"{name}.mf": manifest(listed)}


def _write_tar(into: int, texts: dict[str, bytes], boot: Path, epoch: int) -> None:
    ustar = tarfile.USTAR_FORMAT
    with open(into, "wb", closefd=False) as file, tarfile.open(fileobj=file, mode="w", format=ustar) as tar:
        for name, text in texts.items():
            tar.addfile(_entry(name, len(text), epoch), io.BytesIO(text))
        with boot.open("rb") as content:
            tar.addfile(_entry(boot.name, boot.stat().st_size, epoch), content)


def _entry(name: str, size: int, epoch: int) -> tarfile.TarInfo:
    """A file of root's: what TarInfo begins with."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = size, epoch, 0o644
    return entry
