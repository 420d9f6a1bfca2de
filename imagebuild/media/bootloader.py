"""The programs that firmware starts, from Debian's packages, which are downloaded and taken apart but not installed.

    BIOS   isolinux.bin + ldlinux.c32, and isohdpfx.bin for disks    packages isolinux, syslinux-common
    UEFI   systemd-boot                                              package systemd-boot-efi

Chosen by size, with Debian 12's packages (docs/iso.md has the table): GRUB's one-file EFI program has 3.8 MB and would
be a quarter of the ISO; systemd-boot has 0.14 MB, reads two short text files and lets the kernel's own EFI code do the
rest.  syslinux has an EFI variant of its own which brings 0.3 MB and does the kernel's work itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from imagebuild.boot.deb import unpack_deb
from imagebuild.errors import MediaError

DOWNLOAD_SECONDS = 300  # three packages of 1.5 MB together
_FILES = {  # file of the package -> its name in our cache
    "isolinux": {"usr/lib/ISOLINUX/isolinux.bin": "isolinux.bin", "usr/lib/ISOLINUX/isohdpfx.bin": "isohdpfx.bin"},
    "syslinux-common": {"usr/lib/syslinux/modules/bios/ldlinux.c32": "ldlinux.c32"},
    "systemd-boot-efi": {"usr/lib/systemd/boot/efi/systemd-bootx64.efi": "bootx64.efi"},
}
_HYBRID_MARK = bytes.fromhex("fbc07870")  # at byte 64 of an isolinux.bin that isohdpfx.bin can start (isohybrid.c)


@dataclass(frozen=True)
class Bootloader:
    """The programs, whole."""

    isolinux: bytes
    ldlinux: bytes
    disk_code: bytes
    efi: bytes


def find_bootloader(cache: Path) -> Bootloader:
    """The programs, downloaded if `cache` does not have them.  Raises MediaError."""
    folder = cache / "bootloader"
    names = [name for files in _FILES.values() for name in files.values()]
    try:
        if not all((folder / name).is_file() for name in names):
            _fetch(folder)
        found = {name: (folder / name).read_bytes() for name in names}
    except OSError as error:
        raise MediaError("read boot loader", str(folder), error.strerror or str(error),
                         "make the cache folder writable, with 10 MB of room") from error
    if found["isolinux.bin"][64:68] != _HYBRID_MARK:
        raise MediaError("read boot loader", str(folder / "isolinux.bin"), "it cannot start from a disk",
                         "delete the folder and try again")
    return Bootloader(found["isolinux.bin"], found["ldlinux.c32"], found["isohdpfx.bin"], found["bootx64.efi"])


def _fetch(folder: Path) -> None:
    """Fill the cache folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".bootloader-", dir=folder.parent))
    try:
        made = scratch / "made"
        made.mkdir()
        _download(scratch)
        for package, files in _FILES.items():
            unpack_deb(next(scratch.glob(f"{package}_*.deb")), made, files.get)
        missing = [name for files in _FILES.values() for name in files.values() if not (made / name).is_file()]
        if missing:
            raise MediaError("unpack boot loader", ", ".join(_FILES), f"the packages have no {', '.join(missing)}",
                             "report it: the layout of the packages has changed")
        shutil.rmtree(folder, ignore_errors=True)  # not whole, or we would not be here
        made.chmod(0o755)
        made.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(into: Path) -> None:
    """Fetch the packages; apt checks their hashes against the signed index."""
    command = ["apt-get", "download", "-q", *_FILES]
    remedy = f"run `apt-get update` as root and check apt's sources; packages: {' '.join(_FILES)}"
    try:
        subprocess.run(command, cwd=into, env={**os.environ, "LC_ALL": "C"}, check=True, capture_output=True, text=True,
                       stdin=subprocess.DEVNULL, timeout=DOWNLOAD_SECONDS)
    except FileNotFoundError as error:
        raise MediaError("download boot loader", "apt-get", "there is none here",
                         "make the ISO on Debian, or copy the folder `bootloader` of another cache") from error
    except subprocess.TimeoutExpired as error:
        raise MediaError("download boot loader", "apt-get", f"it did not end within {DOWNLOAD_SECONDS} s",
                         remedy) from error
    except subprocess.CalledProcessError as error:
        complaints = [line for line in str(error.stderr).splitlines() if line.startswith("E:")]
        raise MediaError("download boot loader", "apt-get", complaints[-1] if complaints else "it failed",
                         remedy) from error
