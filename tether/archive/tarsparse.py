"""Where the stored bytes of a sparse member belong: GNU's old header, and its PAX formats 0.0, 0.1 and 1.0.

Source: GNU tar manual, "Storing Sparse Files".  The functions raise ValueError with a cause for people.
"""

from tether.archive.entry import BLOCK, Segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_SEGMENTS = 1 << 18  # a file of 2 GB that is all holes and blocks
_FIELD = 12
_IN_HEADER, _FIRST = 4, 386
_IN_BLOCK, _MORE_IN_BLOCK = 21, 504
_MORE, _REAL_SIZE = 482, slice(483, 495)
_MAX_DIGITS = 20


def place(segments: list[Segment], stored: int, size: int) -> tuple[Segment, ...]:
    """The segments that hold data, once they are found to be in order, inside `size`, and `stored` bytes in all."""
    end = 0
    for segment in segments:
        if segment.offset < end or segment.length < 0:
            raise ValueError("its sparse map is not in order")
        end = segment.offset + segment.length
    if end > size or sum(segment.length for segment in segments) != stored:
        raise ValueError("its sparse map does not fit its size")
    return tuple(segment for segment in segments if segment.length)


def gnu_map(header: bytes, block: "Callable[[], bytes]") -> tuple[list[Segment], int]:
    """Type "S": four segments in the header, 21 in each block after it.  And the file's size."""
    segments = _slots(header, _FIRST, _IN_HEADER)
    more = header[_MORE]
    while more:
        if len(segments) > MAX_SEGMENTS:
            raise ValueError("a sparse map without end")
        extension = block()
        segments += _slots(extension, 0, _IN_BLOCK)
        more = extension[_MORE_IN_BLOCK]
    return segments, _octal(header[_REAL_SIZE])


def pax_map_0(records: list[tuple[bytes, bytes]]) -> list[Segment]:
    """0.1: one record with all numbers; 0.0: records for offset and length in turn."""
    said = dict(records)
    if b"GNU.sparse.map" in said:
        return _pairs(said[b"GNU.sparse.map"].split(b",") if said[b"GNU.sparse.map"] else [])
    wanted = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
    return _pairs([value for key, value in records if key in wanted])


def pax_map_1(block: "Callable[[], bytes]", stored: int) -> tuple[list[Segment], int]:
    """1.0: lines at the beginning of the data, in whole blocks.  And how many bytes they took."""
    text, taken = b"", 0
    numbers: list[bytes] = []
    wanted = 1
    while len(numbers) < wanted:
        if taken + BLOCK > stored:
            raise ValueError("its sparse map is longer than its data")
        taken += BLOCK
        *lines, text = (text + block()).split(b"\n")
        numbers += lines
        if len(text) > BLOCK or len(numbers) > 2 * MAX_SEGMENTS:
            raise ValueError("a sparse map without end")
        if numbers:
            wanted = 1 + 2 * _decimal(numbers[0])
    return _pairs(numbers[1:wanted]), taken


def _slots(block: bytes, first: int, count: int) -> list[Segment]:
    segments = []
    for at in range(first, first + 2 * _FIELD * count, 2 * _FIELD):
        if not block[at]:
            break
        middle, end = at + _FIELD, at + 2 * _FIELD
        segments.append(Segment(offset=_octal(block[at:middle]), length=_octal(block[middle:end])))
    return segments


def _pairs(numbers: list[bytes]) -> list[Segment]:
    if len(numbers) % 2:
        raise ValueError("its sparse map has an odd count of numbers")
    return [Segment(offset=_decimal(numbers[at]), length=_decimal(numbers[at + 1])) for at in range(0, len(numbers), 2)]


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise ValueError(f"its sparse map holds {digits[:40]!r}")
    return int(digits)


def _octal(field: bytes) -> int:
    """As the numbers of a header: octal, or base 256."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise ValueError(f"its sparse map holds {field!r}")
    return int(digits, 8) if digits else 0
