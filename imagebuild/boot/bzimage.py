"""The plain kernel inside a bzImage, so that it can be entered directly (PVH) without unpacking itself in the guest.

A bzImage is a small loader plus a compressed ELF file; the guest's own decompression is a quarter of a boot where
the CPU is emulated.  QEMU enters an ELF file through the note XEN_ELFNOTE_PHYS32_ENTRY.  Sources: the kernel's
Documentation/x86/boot.rst (payload_offset, payload_length), QEMU's hw/i386/x86.c (load_elfboot), the LZ4 block and
legacy frame formats.
"""

from __future__ import annotations

import lzma
import struct
import zlib

import zstandard

from imagebuild.errors import KernelError

_SETUP_SECTS_AT = 0x1F1  # number of 512-byte sectors of real-mode code after the first; 0 means 4
_MAGIC_AT, _MAGIC = 0x202, b"HdrS"
_VERSION_AT, _MIN_VERSION = 0x206, 0x0208  # payload_offset came with boot protocol 2.08
_PAYLOAD_AT = 0x248  # payload_offset, payload_length
_SIZE_TRAILER = 4  # the build appends the unpacked size, little endian, to every format but gzip
MAX_UNPACKED = 256 << 20  # a kernel of 256 MiB is damage or an attack

_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_LEGACY_BLOCK = 8 << 20  # every block of the legacy format unpacks to at most 8 MiB

_PT_NOTE = 4
_XEN_PHYS32_ENTRY = 18
_PHDR = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr: type flags offset vaddr paddr filesz memsz align


def payload(image: bytes, subject: str) -> bytes:
    """The compressed kernel of a bzImage.  Raises KernelError when it is not one."""
    if image[_MAGIC_AT:_MAGIC_AT + 4] == _MAGIC and len(image) >= _PAYLOAD_AT + 8:
        version, = struct.unpack_from("<H", image, _VERSION_AT)
        offset, length = struct.unpack_from("<II", image, _PAYLOAD_AT) if version >= _MIN_VERSION else (0, 0)
        begin = ((image[_SETUP_SECTS_AT] or 4) + 1) * 512 + offset
        if length and begin + length <= len(image):
            return image[begin:begin + length]
    raise KernelError("read kernel image", subject, "it is not a bzImage of boot protocol 2.08 or later",
                      "delete the kernel's folder in the cache and try again")


def unpack(packed: bytes, subject: str) -> bytes | None:
    """The plain ELF kernel from a payload, for the compressions that distributions use; None for another one.

    Raises KernelError for a damaged payload.
    """
    try:
        if packed.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(wbits=31).decompress(packed, MAX_UNPACKED)
        if packed.startswith(b"\xfd7zXZ"):
            return lzma.LZMADecompressor().decompress(packed, MAX_UNPACKED)
        if packed.startswith(b"\x28\xb5\x2f\xfd"):
            with zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=False) as reader:
                return bytes(reader.read(MAX_UNPACKED))
        if packed.startswith(_LZ4_LEGACY):
            return _unlz4_legacy(packed)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, IndexError, struct.error, ValueError) as error:
        raise KernelError("unpack kernel image", subject, str(error),
                          "delete the kernel's folder in the cache and try again") from error
    return None


def _unlz4_legacy(packed: bytes) -> bytes:
    """Blocks of [packed size, u32][data]; the build's size trailer ends them."""
    size, = struct.unpack_from("<I", packed, len(packed) - _SIZE_TRAILER)
    if size > MAX_UNPACKED:
        raise ValueError(f"it would unpack to {size} bytes")
    blocks: list[bytes] = []
    at, end = len(_LZ4_LEGACY), len(packed) - _SIZE_TRAILER
    while at < end:
        length, = struct.unpack_from("<I", packed, at)
        at += 4
        blocks.append(lz4_block(packed[at:at + length], _LZ4_LEGACY_BLOCK))
        at += length
    plain = b"".join(blocks)
    if len(plain) != size:
        raise ValueError(f"it unpacks to {len(plain)} bytes where {size} are promised")
    return plain


def lz4_block(src: bytes, limit: int) -> bytes:
    """Unpack one LZ4 block to at most ``limit`` bytes.

    In Python because it runs once per kernel and its result is cached: 53 MB take a few seconds, which is no reason
    for one more dependency.  Raises ValueError or IndexError for damaged input.
    """
    out = bytearray()
    at, end = 0, len(src)
    while at < end:
        token = src[at]
        at += 1
        length = token >> 4
        if length == 15:
            while (more := src[at]) == 255:
                length += 255
                at += 1
            length += more
            at += 1
        if length:
            out += src[at:at + length]
            at += length
        if at >= end:
            break
        distance = src[at] | src[at + 1] << 8
        at += 2
        length = token & 15
        if length == 15:
            while (more := src[at]) == 255:
                length += 255
                at += 1
            length += more
            at += 1
        length += 4
        start = len(out) - distance
        if start < 0 or distance == 0:
            raise ValueError("an LZ4 match points before its block")
        if distance >= length:
            out += out[start:start + length]
        else:  # the match overlaps what it writes: its bytes repeat
            out += (out[start:] * (length // distance + 1))[:length]
        if len(out) > limit:
            raise ValueError("an LZ4 block is larger than its format allows")
    return bytes(out)


def pvh_kernel(image: bytes, subject: str) -> bytes | None:
    """The plain kernel of a bzImage if QEMU can enter it directly, else None."""
    elf = unpack(payload(image, subject), subject)
    return elf if elf is not None and has_pvh_entry(elf) else None


def has_pvh_entry(elf: bytes) -> bool:
    """Whether QEMU can enter this ELF kernel directly: a note of owner "Xen" and type XEN_ELFNOTE_PHYS32_ENTRY."""
    if not elf.startswith(b"\x7fELF\x02\x01"):
        return False
    table, = struct.unpack_from("<Q", elf, 32)
    entry, count = struct.unpack_from("<HH", elf, 54)
    for number in range(count):
        kind, _flags, offset, _va, _pa, size, _mem, _align = _PHDR.unpack_from(elf, table + number * entry)
        if kind == _PT_NOTE and _has_note(elf[offset:offset + size]):
            return True
    return False


def _has_note(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        owner_size, size, kind = struct.unpack_from("<III", notes, at)
        if kind == _XEN_PHYS32_ENTRY and notes[at + 12:at + 12 + owner_size] == b"Xen\0":
            return True
        at += 12 + (owner_size + 3 & ~3) + (size + 3 & ~3)
    return False
