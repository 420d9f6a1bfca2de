"""The parts of an ISO, small and made up, for tests that boot nothing."""

from __future__ import annotations

from typing import Any

from imagebuild.media.bootloader import Bootloader
from imagebuild.media.iso import Recipe

EPOCH = 1_700_000_000
CD = 737_280_000
ISOLINUX = bytes(64) + bytes.fromhex("fbc07870") + bytes(range(256)) * 20
LOADER = Bootloader(isolinux=ISOLINUX, ldlinux=b"ldlinux" * 99, disk_code=b"\xcc" * 432, efi=b"MZ" * 7777)
KERNEL, INITRAMFS = b"kernel!" * 100_000, b"initramfs" * 50_000


def recipe(**changes: Any) -> Recipe:
    """A recipe of these parts, with some changed."""
    given = {"kernel": KERNEL, "initramfs": INITRAMFS, "bootloader": LOADER, "epoch": EPOCH, "max_bytes": CD}
    return Recipe(**{**given, **changes})
