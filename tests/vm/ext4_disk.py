"""A disk that a test plugs into a machine, and what is on it afterwards by the word of e2fsprogs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from imagebuild.disk import vmdk
from imagebuild.disk.ext4 import make_ext4
from vch.qemu.config import Drive

DISK_BYTES = 16 << 20


def ext4_drive(folder: Path, serial: str) -> Drive:
    """An empty ext4 disk; its bytes are in SERIAL.raw."""
    raw = folder / f"{serial}.raw"
    handle = os.open(raw, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    make_ext4(handle, DISK_BYTES, "", os.urandom(16))
    os.close(handle)
    path = folder / f"{serial}.vmdk"
    path.write_text(vmdk.flat(raw.name, DISK_BYTES // 512))
    return Drive(serial, str(path))


def content_of(raw: Path, path: str) -> str:
    """A file of an ext4 disk, as e2fsprogs read it; the disk has no errors."""
    subprocess.run(["e2fsck", "-fn", raw], check=True, capture_output=True)
    return subprocess.run(["debugfs", "-R", f"cat {path}", raw], check=True, capture_output=True, text=True).stdout
