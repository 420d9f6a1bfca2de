"""The metadata of an ISO 9660 file system: volume descriptors, path tables, directories, El Torito boot catalog.

Pure: what is asked for goes in, bytes come out.  Contents are the caller's, who may let two names, or another file
system, share them.  No clock is read anywhere, which is why this is not left to a library: pycdlib stamps the time of
day in twenty places and takes no other, and a build must give the same bytes tomorrow (it judges ours in the tests).

Names are plain level 2 ("VCH/SPEC.JSON;1"): Linux shows them in small letters, isolinux does not tell them apart.
Sources: ECMA-119 (4th edition); "El Torito" Bootable CD-ROM Format Specification 1.0; UEFI specification 2.10, 13.3.2.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass

from imagebuild.errors import MediaError

BLOCK = 2048
FIRST_BLOCK = 16  # what precedes is the "system area": partition tables and boot code of disks
_CATALOG_BLOCK = 19  # after the three volume descriptors
_TABLES_BLOCK = 20
_MAX_EXTENT = 0xFFFF_F800  # bytes of one extent; larger files have several (ECMA-119, 6.5)
_MAX_BLOCKS = 0xFFFF_FFFF
_NAME = re.compile(r"[A-Z0-9_]{1,26}(\.[A-Z0-9_]{1,8})?")
_LABEL = re.compile(r"[A-Z0-9_]{1,32}")
_FOLDER, _MORE_EXTENTS = 0x02, 0x80
_MAX_BOOT_SECTORS = 0xFFFF  # El Torito counts the 512-byte sectors of a boot image in 16 bits
MAX_BOOT_IMAGE = _MAX_BOOT_SECTORS * 512
_BIOS, _EFI = 0, 0xEF
_BOOTABLE = 0x88
_FINAL_HEADER = 0x91
_BIOS_SECTORS = 4  # of its boot image the BIOS loads one block, which loads the rest


@dataclass(frozen=True)
class Extent:
    """Where a content is: its first block and its length in bytes."""

    block: int
    size: int


@dataclass(frozen=True)
class Volume:
    """What an ISO says of itself.  `blocks` is its whole length, `bios` and `efi` are its two boot images."""

    label: str
    epoch: int
    blocks: int
    bios: Extent
    efi: Extent


def iso_name(path: str) -> str:
    """A path as ISO 9660 spells it: "boot/loader.conf" is "BOOT/LOADER.CONF".  Raises MediaError for what cannot be."""
    for part in path.upper().split("/"):
        if not _NAME.fullmatch(part):
            raise MediaError("plan ISO", path, f"ISO 9660 has no name {part!r}",
                             "use letters, digits and _, and at most one dot")
    return path.upper()


def metadata_blocks(paths: Mapping[str, Extent]) -> int:
    """How many blocks `metadata` will have; of the extents only the sizes matter."""
    nothing = Extent(0, 0)
    return len(metadata(paths, Volume("X", 0, 0, nothing, nothing))) // BLOCK


def metadata(paths: Mapping[str, Extent], volume: Volume) -> bytes:
    """Everything from block 16 to the first content.  Raises MediaError for names or sizes the format cannot hold."""
    if not _LABEL.fullmatch(volume.label) or volume.blocks > _MAX_BLOCKS:
        raise MediaError("plan ISO", volume.label, "the label or the size is none that ISO 9660 can hold",
                         "a label is 1 to 32 of A-Z, 0-9 and _")
    files = {iso_name(path): extent for path, extent in paths.items()}
    folders = _folders(files)
    table_size = sum(_even(8 + len(_own_name(folder))) for folder in folders)
    table_blocks = _blocks(table_size)
    at = _TABLES_BLOCK + 2 * table_blocks
    places: dict[str, Extent] = {}
    for folder in folders:
        size = len(_listing(folder, folders, files, dict.fromkeys(folders, Extent(0, 0)), volume.epoch))
        places[folder] = Extent(at, size)
        at += _blocks(size)
    return b"".join([
        _primary(volume, places[""], table_size, table_blocks),
        _boot_record(),
        _padded(b"\xffCD001\x01"),
        _padded(_catalog(volume)),
        _padded(_path_table(folders, places, "<")),
        _padded(_path_table(folders, places, ">")),
        *(_listing(folder, folders, files, places, volume.epoch) for folder in folders),
    ])


def with_boot_information(program: bytes, block: int) -> bytes:
    """isolinux.bin as it stands on an ISO at `block`: told where it is, and its own checksum (isolinux(1))."""
    words = program.ljust(-(-len(program) // 4) * 4, b"\0")
    total = sum(struct.unpack(f"<{len(words) // 4 - 16}I", words[64:])) & 0xFFFF_FFFF
    table = struct.pack("<IIII", FIRST_BLOCK, block, len(program), total)
    return program[:8] + table + bytes(40) + program[64:]


def _folders(files: Mapping[str, Extent]) -> list[str]:
    """All directories, the root ("") first, in the order that path tables want: by depth, then parent, then name."""
    found = {""}
    for path in files:
        parts = path.split("/")
        found |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
    clash = found & files.keys()
    if clash:
        raise MediaError("plan ISO", min(clash), "it is a file and a folder at once")
    return sorted(found, key=lambda path: (path.count("/") + bool(path), path.split("/")))


def _own_name(folder: str) -> bytes:
    return folder.rpartition("/")[2].encode() or b"\0"


def _listing(folder: str, folders: list[str], files: Mapping[str, Extent], places: Mapping[str, Extent],
             epoch: int) -> bytes:
    """The blocks of one directory; no record crosses a block's end."""
    parent = folder.rpartition("/")[0]
    records = [_record(b"\0", places[folder], _FOLDER, epoch), _record(b"\1", places[parent], _FOLDER, epoch)]
    prefix = f"{folder}/" if folder else ""
    children: list[tuple[bytes, Extent, int]] = []
    for other in folders:
        if other and other.rpartition("/")[0] == folder:
            children.append((_own_name(other), places[other], _FOLDER))
    for path, extent in files.items():
        if path.startswith(prefix) and "/" not in path[len(prefix):]:
            name = path[len(prefix):]
            full = (name if "." in name else name + ".") + ";1"
            children += [(full.encode(), part, flags) for part, flags in _parts(extent)]
    children.sort(key=lambda child: child[0])  # stable: the extents of one file keep their order
    blocks = [b""]
    for record in (*records, *(_record(name, extent, flags, epoch) for name, extent, flags in children)):
        if len(blocks[-1]) + len(record) > BLOCK:
            blocks.append(b"")
        blocks[-1] += record
    return b"".join(_padded(block) for block in blocks)


def _parts(extent: Extent) -> list[tuple[Extent, int]]:
    """A content as the extents of a directory: all but the last of a large one say that more follow."""
    found = []
    block, left = extent.block, extent.size
    while left > _MAX_EXTENT:
        found.append((Extent(block, _MAX_EXTENT), _MORE_EXTENTS))
        block, left = block + _MAX_EXTENT // BLOCK, left - _MAX_EXTENT
    return [*found, (Extent(block, left), 0)]


def _record(name: bytes, extent: Extent, flags: int, epoch: int) -> bytes:
    """A directory record (ECMA-119, 9.1)."""
    moment = time.gmtime(epoch)
    date = bytes([moment.tm_year - 1900, moment.tm_mon, moment.tm_mday, moment.tm_hour, moment.tm_min, moment.tm_sec,
                  0])
    body = (_both32(extent.block) + _both32(extent.size) + date + bytes([flags, 0, 0]) + _both16(1)
            + bytes([len(name)]) + name)
    body += bytes(len(body) % 2)  # with the two bytes before it, an even length
    return bytes([2 + len(body), 0]) + body


def _path_table(folders: list[str], places: Mapping[str, Extent], order: str) -> bytes:
    """A path table (ECMA-119, 9.4) with numbers in the given byte order."""
    numbers = {folder: number for number, folder in enumerate(folders, 1)}
    entries = []
    for folder in folders:
        name = _own_name(folder)
        parent = numbers[folder.rpartition("/")[0]]
        entry = struct.pack(f"{order}BBIH", len(name), 0, places[folder].block, parent) + name
        entries.append(entry + bytes(len(entry) % 2))
    return b"".join(entries)


def _primary(volume: Volume, root: Extent, table_size: int, table_blocks: int) -> bytes:
    """The primary volume descriptor (ECMA-119, 8.4)."""
    low, high = _TABLES_BLOCK, _TABLES_BLOCK + table_blocks
    moment = time.strftime("%Y%m%d%H%M%S00", time.gmtime(volume.epoch)).encode() + b"\0"
    return _padded(b"".join([
        b"\x01CD001\x01\0",
        _text("LINUX", 32), _text(volume.label, 32), bytes(8),
        _both32(volume.blocks), bytes(32), _both16(1), _both16(1), _both16(BLOCK),
        _both32(table_size), struct.pack("<II", low, 0), struct.pack(">II", high, 0),
        _record(b"\0", root, _FOLDER, volume.epoch),
        _text("", 3 * 128), _text("VCH IMAGEBUILD", 128),  # volume set, publisher, preparer; the program that made it
        _text("", 37), _text("", 37), _text("", 37),
        moment, moment, b"0" * 16 + b"\0", moment,  # made, changed, expires (never), effective
        b"\x01\0",
    ]))


def _boot_record() -> bytes:
    """The volume descriptor that points to the boot catalog (El Torito, figure 7)."""
    return _padded(b"\0CD001\x01" + b"EL TORITO SPECIFICATION".ljust(64, b"\0") + struct.pack("<I", _CATALOG_BLOCK))


def _catalog(volume: Volume) -> bytes:
    """The boot catalog: the BIOS's program, and for UEFI a FAT volume."""
    efi_sectors = -(-volume.efi.size // 512)
    if efi_sectors > _MAX_BOOT_SECTORS:
        raise MediaError("plan ISO", "EFI boot volume", f"{efi_sectors // 2048} MiB, and El Torito can describe 32",
                         "use a smaller kernel (--kernel pico)")
    validation = struct.pack("<BBH24sHBB", 1, _BIOS, 0, b"VCH", 0, 0x55, 0xAA)
    total = sum(struct.unpack("<16H", validation)) & 0xFFFF
    validation = validation[:28] + struct.pack("<H", -total & 0xFFFF) + validation[30:]
    return b"".join([
        validation,
        _boot_entry(_BIOS_SECTORS, volume.bios.block),
        struct.pack("<BBH28s", _FINAL_HEADER, _EFI, 1, b""),
        _boot_entry(efi_sectors, volume.efi.block),
    ])


def _boot_entry(sectors: int, block: int) -> bytes:
    """An entry without emulation of a floppy or hard disk."""
    return struct.pack("<BBHBBHI20s", _BOOTABLE, 0, 0, 0, 0, sectors, block, b"")


def _both16(number: int) -> bytes:
    return struct.pack("<H", number) + struct.pack(">H", number)


def _both32(number: int) -> bytes:
    return struct.pack("<I", number) + struct.pack(">I", number)


def _text(text: str, length: int) -> bytes:
    return text.encode().ljust(length)


def _even(number: int) -> int:
    return number + number % 2


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def _padded(data: bytes) -> bytes:
    return data.ljust(_blocks(len(data)) * BLOCK, b"\0")
