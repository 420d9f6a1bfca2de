"""What makes an ISO bootable when it is written to a USB stick or attached as a disk: partition tables around it.

The first 32 KiB of an ISO 9660 file system are free for this.  A BIOS runs the code of the first sector, syslinux's
isohdpfx.bin, which finds isolinux.bin by the address written after it.  UEFI firmware reads the GPT and finds the
FAT volume as an EFI system partition; so does Linux, and the whole disk can be mounted as ISO 9660 all the same.
Sources: syslinux's utils/isohybrid.c for the address; UEFI specification 2.10, 5.2.3 for the protective MBR.
"""

from __future__ import annotations

import hashlib
import struct
import uuid

from imagebuild.disk import gpt
from imagebuild.media.iso9660 import BLOCK, FIRST_BLOCK, Extent

SYSTEM_AREA = FIRST_BLOCK * BLOCK
MBR_CODE = 432  # bytes of boot code that isohdpfx.bin has
TAIL_BLOCKS = -(-gpt.backup_sectors(1) * gpt.SECTOR // BLOCK)  # room for the backup table at the end
_SECTORS = BLOCK // gpt.SECTOR
_EFI_SYSTEM = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_PARTITION_TABLE = 446
_PARTITION_ENTRY = 16


def system_area(boot_code: bytes, isolinux: Extent, efi: Extent, blocks: int, identity: bytes) -> bytes:
    """The first 32 KiB of an ISO of so many blocks.  `identity` is what its disk number is made of."""
    partitions = _partitions(efi, identity)
    table = gpt.primary(partitions, blocks * _SECTORS)
    number = hashlib.sha256(identity).digest()[:4]
    head = boot_code[:MBR_CODE].ljust(MBR_CODE, b"\0") + struct.pack("<II", isolinux.block * _SECTORS, 0) + number
    mbr = head.ljust(_PARTITION_TABLE, b"\0") + table[_PARTITION_TABLE : gpt.SECTOR]
    return (_with_active_entry(mbr) + table[gpt.SECTOR :]).ljust(SYSTEM_AREA, b"\0")


def tail(efi: Extent, blocks: int, identity: bytes) -> bytes:
    """The last TAIL_BLOCKS blocks: the backup of the table."""
    return gpt.backup(_partitions(efi, identity), blocks * _SECTORS).rjust(TAIL_BLOCKS * BLOCK, b"\0")


def _partitions(efi: Extent, identity: bytes) -> list[gpt.Partition]:
    guid = uuid.UUID(bytes=hashlib.sha256(b"efi" + identity).digest()[:16], version=4)
    sectors = -(-efi.size // gpt.SECTOR)
    return [gpt.Partition(efi.block * _SECTORS, sectors, guid, "EFI boot volume", _EFI_SYSTEM)]


def _with_active_entry(mbr: bytes) -> bytes:
    """Some BIOSes boot no disk without an active partition; an empty one of type 0 satisfies them and means nothing."""
    at = _PARTITION_TABLE + _PARTITION_ENTRY
    return mbr[:at] + struct.pack("<B3sB3sII", 0x80, b"\0\0\0", 0, b"\0\0\0", 0, 1) + mbr[at + _PARTITION_ENTRY :]
