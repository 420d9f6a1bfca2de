"""Sparse files in tar: GNU's old header and its PAX formats 0.0, 0.1 and 1.0, all turned into segments.

Source: GNU tar manual, "Storing Sparse Files".  Functions raise `ValueError` with a cause fit for a person.
"""

from __future__ import annotations

from collections.abc import Callable

from imagebuild.layer.entry import Segment
from imagebuild.layer.pax import decimal
from imagebuild.layer.tarheader import BLOCK, number

_OLD_MAP_OFFSET, _OLD_MAP_SLOTS = 386, 4
_OLD_EXTENDED_FLAG, _OLD_REAL_SIZE = 482, slice(483, 495)
_EXTENSION_SLOTS, _EXTENSION_FLAG = 21, 504
_FIELD = 12

ReadBlock = Callable[[], bytes]


def check_segments(segments: list[Segment], stored: int, size: int) -> tuple[Segment, ...]:
    """The segments that hold data, once they are in order, inside *size* and add up to the *stored* bytes."""
    end = total = 0
    for offset, length in segments:
        if offset < end:
            raise ValueError("its sparse map is not in order")
        end = offset + length
        total += length
    if end > size:
        raise ValueError(f"its sparse map reaches to byte {end} of a file of {size}")
    if total != stored:
        raise ValueError(f"its sparse map speaks of {total} bytes of data where {stored} are stored")
    return tuple(segment for segment in segments if segment.length)


def _add(segments: list[Segment], offset: int, length: int, limit: int) -> None:
    if len(segments) >= limit:
        raise ValueError(f"its sparse map has more than {limit} segments")
    if offset < 0 or length < 0:
        raise ValueError("its sparse map holds a negative number")
    segments.append(Segment(offset, length))


def _old_slots(block: bytes, start: int, slots: int, segments: list[Segment], limit: int) -> None:
    """Read pairs of 12-byte numbers until one is empty."""
    for at in range(start, start + slots * 2 * _FIELD, 2 * _FIELD):
        if not block[at]:
            return
        _add(segments, number(block[at : at + _FIELD]), number(block[at + _FIELD : at + 2 * _FIELD]), limit)


def old_gnu_map(header: bytes, read_block: ReadBlock, limit: int) -> tuple[list[Segment], int]:
    """Segments and real size of a type ``S`` entry: four in the header, the others in blocks that follow it."""
    segments: list[Segment] = []
    _old_slots(header, _OLD_MAP_OFFSET, _OLD_MAP_SLOTS, segments, limit)
    more = header[_OLD_EXTENDED_FLAG]
    while more:
        block = read_block()
        _old_slots(block, 0, _EXTENSION_SLOTS, segments, limit)
        more = block[_EXTENSION_FLAG]
        if more and not block[0]:
            raise ValueError("its sparse map goes on after its end")
    return segments, number(header[_OLD_REAL_SIZE])


def _pairs(numbers: list[bytes], limit: int) -> list[Segment]:
    if len(numbers) % 2:
        raise ValueError("its sparse map holds an odd count of numbers")
    segments: list[Segment] = []
    for at in range(0, len(numbers), 2):
        _add(segments, decimal(numbers[at], "sparse map"), decimal(numbers[at + 1], "sparse map"), limit)
    return segments


def pax_map_0(records: list[tuple[bytes, bytes]], limit: int) -> list[Segment]:
    """Formats 0.0 (one record each for offset and length) and 0.1 (one list)."""
    for key, value in records:
        if key == b"GNU.sparse.map":
            return _pairs(value.split(b",") if value else [], limit)
    wanted = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
    ordered = [(key, value) for key, value in records if key in wanted]
    for at, (key, _) in enumerate(ordered):
        if key != wanted[at % 2]:
            raise ValueError("its sparse map does not alternate offsets and lengths")
    return _pairs([value for _, value in ordered], limit)


def pax_map_1(read_block: ReadBlock, stored: int, limit: int) -> tuple[list[Segment], int]:
    """Format 1.0: decimal lines at the head of the data, in whole blocks.  Returns also the bytes they took."""
    taken = 0
    numbers: list[bytes] = []
    rest = b""
    wanted = 1
    while len(numbers) < wanted:
        if taken + BLOCK > stored:
            raise ValueError("its sparse map is longer than its data")
        taken += BLOCK
        *lines, rest = (rest + read_block()).split(b"\n")
        numbers += lines
        if len(rest) > BLOCK:
            raise ValueError("its sparse map holds a number without end")
        if wanted == 1 and numbers:
            count = decimal(numbers[0], "sparse map")
            if count > limit:
                raise ValueError(f"its sparse map has more than {limit} segments")
            wanted = 1 + 2 * count
    return _pairs(numbers[1:wanted], limit), taken
