"""Frames: what the bytes of the transport are cut into (docs/protocol.md, "Frames").

    mark 4 | generation 1 | kind 1 | flags 2 | length 4 | stream 4 | offset 8 | header CRC 4 | payload | payload CRC 4

All numbers are big endian.  The header CRC comes before the payload, so a length that is noise is never waited for.
It starts from the *key* that the receiver named in the hello of this connection: frames of an earlier connection, and
frames that somebody wrote into a payload, do not pass.  The payload CRC goes on from the header CRC and ties the two
together; without a payload it is left out.

A receiver whose transport can lose bytes but never changes any (virtio-serial, sockets) may say that the *ends* of a
long payload suffice: its CRC then covers the first and the last KiB.  Where bytes are missing, what stands in the
place of the end and of the CRC is something else.  Without KVM the CRC of all bytes is most of what the link costs.
"""

from struct import Struct
from zlib import crc32

from tether.link.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    Part = bytes | memoryview
    Frame = tuple[int, int, int, int, memoryview]  # kind, flags, stream, offset, payload

GENERATION = 1  # of the protocol that this code speaks best
OLDEST_GENERATION = 1  # of those it still speaks

# 0xF5 and above never occur in UTF-8, so console text cannot contain a mark.
MARK = b"\xf7TL\xfe"

HELLO, RESUME, BYE, DATA, ACK, NAK, CLOSED = 1, 2, 3, 4, 5, 6, 7
_KEYLESS = (HELLO, RESUME)  # come before the receiver's key is known, or prove by other means that they are meant
_WHATEVER_THE_LIMITS = (HELLO, RESUME, BYE)

FIN = 1  # DATA: the stream ends after this payload.  ACK: the end has arrived
ABORT = 2  # DATA with FIN: the sender gave up, what is missing never comes
STOP = 2  # ACK: the receiver wants no more

# The upper bits of the flags of DATA, ACK, NAK and CLOSED tell one life of a stream number from the next: the sender
# counts the streams it begins.  So a number can be used again, and a late frame of its former life does no harm.
LIFE_SHIFT, FLAG_BITS, LIVES = 4, 0xF, 1 << 12

MOST_OPENING_PAYLOAD = 64 * 1024  # of HELLO, RESUME and BYE, whatever the limits say

_FIELDS = Struct(">4sBBHIIQ")
_CRC = Struct(">I")
_HEADER = Struct(">4sBBHIIQI")
_POSITIONS = Struct(">QQ")  # payload of an ACK
_ACK = Struct(f">{_FIELDS.size}sIQQI")  # the whole frame
EDGE = 1024  # bytes at each end of a payload that suffice
_TWO_EDGES = 2 * EDGE
HEADER_SIZE = _HEADER.size
TRAILER_SIZE = _CRC.size
_CHECKED = _FIELDS.size  # bytes under the header CRC
_SMALL = 16 * 1024  # most links of most VMs carry little
_LEAST_READ = 4096  # space that a read is offered at least
_PASSES = 2  # a torn frame is given up at its second tick


def build(
    kind: int,
    key: int,
    *,
    flags: int = 0,
    stream: int = 0,
    offset: int = 0,
    parts: "list[Part] | None" = None,
    ends: bool = False,
) -> "list[Part]":
    """The pieces of one frame, ready for writev; the payload's pieces are passed on uncopied.

    `ends`: the receiver has said that the ends of a long payload suffice (DATA only).
    """
    length = sum(map(len, parts)) if parts else 0
    fields = _FIELDS.pack(MARK, GENERATION, kind, flags, length, stream, offset)
    check = crc32(fields, key)
    header = fields + _CRC.pack(check)
    if not parts:
        return [header]
    for part in _edges(parts) if ends and length > _TWO_EDGES else parts:
        check = crc32(part, check)
    return [header, *parts, _CRC.pack(check)]


def build_ack(key: int, flags: int, stream: int, positions: tuple[int, int, int]) -> bytes:
    """The frame ACK, which goes with nearly every other one.  `positions`: received, released, limit."""
    received, released, limit = positions
    fields = _FIELDS.pack(MARK, GENERATION, ACK, flags, _POSITIONS.size, stream, received)
    check = crc32(fields, key)
    return _ACK.pack(fields, check, released, limit, crc32(_POSITIONS.pack(released, limit), check))


def read_ack(payload: memoryview) -> tuple[int, int]:
    """What the payload of an ACK says: released, limit.  Raises ProtocolError."""
    if len(payload) != _POSITIONS.size:
        raise ProtocolError(f"an acknowledgement of {len(payload)} bytes")
    released, limit = _POSITIONS.unpack(payload)
    return released, limit


def _edges(parts: "list[Part]") -> "list[Part]":
    """The first and the last EDGE bytes."""
    if len(parts) == 1:
        return [parts[0][:EDGE], parts[0][-EDGE:]]
    first, left = [], EDGE
    for part in parts:
        first.append(part[:left])
        left -= len(first[-1])
        if not left:
            break
    last, left = [], EDGE
    for part in reversed(parts):
        last.append(part[-left:])
        left -= len(last[-1])
        if not left:
            break
    return first + last[::-1]


def _check_ends(payload: memoryview, check: int) -> int:
    return crc32(payload[-EDGE:], crc32(payload[:EDGE], check))


class Decoder:
    """Finds the frames in a stream of bytes that may hold anything else too.

    It owns one buffer that bytes are read into (`space`, `filled`) and payloads are seen through (`next`): small as
    long as the frames are, for two of the longest from the first long one on.  Bytes that are no frame are skipped and
    counted:

    noise    bytes skipped
    damaged  frames whose payload CRC was wrong
    """

    def __init__(self, payload_limit: int, ends: bool = False) -> None:
        self._payload_limit = payload_limit
        self._ends = ends
        longest = HEADER_SIZE + max(payload_limit, MOST_OPENING_PAYLOAD) + TRAILER_SIZE
        self._capacity = 2 * longest
        self._buffer = bytearray(min(_SMALL, self._capacity))
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._need = HEADER_SIZE  # bytes from _start that the next step of the decoder waits for
        self._ticks = 0
        self._key = 0
        self.noise = 0
        self.damaged = 0

    def reset(self, key: int) -> None:
        """A connection begins: what is left of the last one is dropped, header CRCs start from `key` now."""
        self._start = self._end = 0
        self._need = HEADER_SIZE
        self._key = key

    def rekey(self, key: int) -> None:
        """The connection begins anew in the middle of the bytes: what is buffered stays, the key changes."""
        self._key = key
        self._need = HEADER_SIZE

    @property
    def partial(self) -> bool:
        """A frame has begun and is not whole yet."""
        return self._need > HEADER_SIZE

    def space(self) -> memoryview:
        """Where the next bytes go; never empty.  Ends the life of payloads that `next` returned."""
        if self._need > len(self._buffer):
            self._grow()
        free = len(self._buffer) - self._end
        if self._start == self._end:
            self._start = self._end = 0
        elif free < _LEAST_READ or self._start + self._need > len(self._buffer):
            held = self._end - self._start
            self._view[:held] = self._view[self._start : self._end]
            self._start, self._end = 0, held
        return self._view[self._end :]

    def _grow(self) -> None:
        held = self._view[self._start : self._end]
        self._buffer = bytearray(self._capacity)
        self._view = memoryview(self._buffer)
        self._view[: len(held)] = held
        self._start, self._end = 0, len(held)

    def filled(self, count: int) -> None:
        """`count` bytes were put into `space`."""
        self._end += count

    def feed(self, data: "Buffer") -> "Buffer":
        """Copies what fits of `data` into the buffer and returns the rest; call `next` until None in between."""
        view = memoryview(data)
        space = self.space()
        count = min(len(space), len(view))
        space[:count] = view[:count]
        self._end += count
        return view[count:]

    def next(self) -> "Frame | None":
        """The next whole frame, or None when more bytes are needed.

        The payload is a view that stays valid until `space` or `feed`.  Raises ProtocolError for an honest header
        that announces more than the limits allow.
        """
        while self._end - self._start >= self._need:
            start = self._start
            mark, _generation, kind, flags, length, stream, offset, check = _HEADER.unpack_from(self._buffer, start)
            key = 0 if kind in _KEYLESS else self._key
            if mark != MARK or crc32(self._view[start : start + _CHECKED], key) != check:
                self._skip()
                continue
            if length > (MOST_OPENING_PAYLOAD if kind in _WHATEVER_THE_LIMITS else self._payload_limit):
                self._skip()
                raise ProtocolError(f"a frame of {length} bytes, {self._payload_limit} are the limit")
            begin = start + HEADER_SIZE
            end = begin + length
            whole = end + TRAILER_SIZE if length else end
            if whole > self._end:
                self._need = whole - start
                return None
            payload = self._view[begin:end]
            if length:
                long = length > _TWO_EDGES and self._ends and kind == DATA
                check = _check_ends(payload, check) if long else crc32(payload, check)
                if check != _CRC.unpack_from(self._buffer, end)[0]:
                    self.damaged += 1
                    self._skip()
                    continue
            self._start = whole
            self._need = HEADER_SIZE
            self._ticks = 0
            return kind, flags, stream, offset, payload
        return None

    def tick(self) -> bool:
        """Time passes: gives up a frame that is not whole at its second tick, and says so.

        It was torn: its header promised bytes that went down with a connection, and the frames that follow must not
        be swallowed as its payload.
        """
        self._ticks = self._ticks + 1 if self.partial else 0
        if self._ticks < _PASSES:
            return False
        self._ticks = 0
        self._skip()
        return True

    def _skip(self) -> None:
        """Drops the byte at the start and all that cannot be the beginning of a mark."""
        found = self._buffer.find(MARK, self._start + 1, self._end)
        if found < 0:
            found = max(self._start + 1, self._end - len(MARK) + 1)
        self.noise += found - self._start
        self._start = found
        self._need = HEADER_SIZE
