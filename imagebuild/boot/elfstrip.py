"""A program or library without what unwinds its stack: nobody in a boot image throws C++ exceptions.

Tables of call frames (.eh_frame and what belongs to it) are a twelfth of an interpreter and its libraries, and a boot
image stays in memory.  Only a library that is not there (libgcc_s) would read them.  Their pages are cut out of the
file: the segment that has them becomes two, the second in the place that the program header table has for the tables
themselves (PT_GNU_EH_FRAME).  No address changes.  What no segment has, section headers above all, is cut off at the
end.  Format: elf(5).
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

PAGE = 4096  # what a segment's place in the file and in memory are congruent by
_ELF64_LE = b"\x7fELF\x02\x01"
_PROGRAM_TABLE, _SECTION_TABLE, _COUNTS = 0x20, 0x28, 0x36  # offsets in Elf64_Ehdr: e_phoff, e_shoff, e_phentsize
_SHDR = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr: name type flags addr offset size link info align entsize
_PHDR = struct.Struct("<IIQQQQQQ")
_PT_LOAD, _PT_GNU_EH_FRAME = 1, 0x6474E550
_SHT_NOBITS = 8
_DEAD = {b".eh_frame_hdr", b".eh_frame", b".gcc_except_table"}
_GAP = 64  # bytes that alignment may leave between two of them


@dataclass(frozen=True)
class Segment:
    """Elf64_Phdr, in its order."""

    kind: int
    flags: int
    offset: int
    address: int
    physical: int
    file_size: int
    memory_size: int
    align: int

    @property
    def end(self) -> int:
        """Where in the file it ends."""
        return self.offset + self.file_size

    def packed(self) -> bytes:
        """As in the table."""
        return _PHDR.pack(self.kind, self.flags, self.offset, self.address, self.physical, self.file_size,
                          self.memory_size, self.align)


def without_unwinding(elf: bytes) -> bytes:
    """The same program, shorter; itself if it is none, is damaged, or has nothing to take out."""
    try:
        segments = _segments(elf)
        dead = _dead(elf)
    except (struct.error, IndexError, ValueError, OverflowError):
        return elf
    home = next((one for one in segments if one.kind == _PT_LOAD and one.offset <= dead.start and dead.stop <= one.end),
                None)
    cut = range(-(-dead.start // PAGE) * PAGE, dead.stop // PAGE * PAGE)
    if home is None or not cut or home.file_size != home.memory_size:
        return elf
    kept = [one for one in segments if one.kind != _PT_GNU_EH_FRAME]
    pieces = [piece for one in kept for piece in (_halves(one, cut, dead) if one == home else [_moved(one, cut)])]
    if len(pieces) > len(segments):
        return elf
    return _assembled(elf, pieces, len(segments), cut, dead)


def _segments(elf: bytes) -> list[Segment]:
    if not elf.startswith(_ELF64_LE):
        raise ValueError("no 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", elf, _PROGRAM_TABLE)
    size, count = struct.unpack_from("<HH", elf, _COUNTS)
    if size != _PHDR.size:
        raise ValueError("program headers of another size")
    return [Segment(*_PHDR.unpack_from(elf, table + size * index)) for index in range(count)]


def _sections(elf: bytes) -> Iterator[tuple[bytes, range]]:
    """Name and place in the file of each section that has one."""
    (table,) = struct.unpack_from("<Q", elf, _SECTION_TABLE)
    _, count, names = struct.unpack_from("<HHH", elf, _COUNTS + 4)
    headers = [_SHDR.unpack_from(elf, table + index * _SHDR.size) for index in range(count)]
    for name, kind, _, _, offset, size, *_ in headers:
        start = headers[names][4] + name
        if kind != _SHT_NOBITS:
            yield elf[start : elf.index(b"\0", start)], range(offset, offset + size)


def _dead(elf: bytes) -> range:
    """The sections that are not wanted, which lie side by side; empty if there are none, or others between them."""
    found = sorted((place for name, place in _sections(elf) if name in _DEAD), key=lambda place: place.start)
    if not found or any(after.start - before.stop > _GAP for before, after in itertools.pairwise(found)):
        return range(0)
    return range(found[0].start, found[-1].stop)


def _halves(home: Segment, cut: range, dead: range) -> list[Segment]:
    """The segment before and after the cut; not after it if nothing but the end of what is dead is there."""
    size = cut.start - home.offset
    before = replace(home, file_size=size, memory_size=size)
    if dead.stop == home.end:
        return [before]
    skipped = cut.stop - home.offset
    rest = home.file_size - skipped
    return [before, replace(home, offset=cut.start, address=home.address + skipped, physical=home.physical + skipped,
                            file_size=rest, memory_size=rest)]


def _moved(segment: Segment, cut: range) -> Segment:
    return replace(segment, offset=segment.offset - len(cut)) if segment.offset >= cut.stop else segment


def _assembled(elf: bytes, pieces: Sequence[Segment], count: int, cut: range, dead: range) -> bytes:
    last = max(one.end for one in pieces if one.kind == _PT_LOAD)
    whole = bytearray(elf)
    whole[dead.start : dead.stop] = bytes(len(dead))  # what is left of it in pages that stay
    made = bytearray(whole[: cut.start] + whole[cut.stop :])[:last]
    (table,) = struct.unpack_from("<Q", elf, _PROGRAM_TABLE)
    headers = b"".join(one.packed() for one in pieces)
    made[table : table + count * _PHDR.size] = headers.ljust(count * _PHDR.size, b"\0")  # PT_NULL: to be ignored
    struct.pack_into("<Q", made, _SECTION_TABLE, 0)
    struct.pack_into("<HH", made, _COUNTS + 6, 0, 0)
    return bytes(made)
