"""The sending half of a stream: keeps what the peer has not released yet, and knows where it stands.

    base <= received <= next <= end          all are offsets from the start of the stream
    base      the peer's program has taken everything below: forgotten here
    received  the peer has everything below, as far as we know
    next      what the next frame begins with; goes back to `received` after a loss (go-back-N)
    high      the highest `next` ever was
    end       what was written so far
    limit     the peer's credit: no byte at or above may be sent
"""


from tether.link.errors import ProtocolError, UsageError
from tether.link.frame import ABORT, FIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque

    from typing_extensions import Buffer

    from tether.link.frame import Part
else:
    from _collections import deque  # the same, without importing `collections`

_COALESCE = 4096  # writes shorter than this are joined, so that the ring is not made of object headers
_CHUNK = 64 * 1024  # what has to be copied is cut, so that what is released is freed


class Sender:
    """See the module.  Whoever calls `write` or `finish` tells the mux that there is something to send."""

    __slots__ = (
        "_at", "_chunks", "_first", "_index", "aborted", "base", "capacity", "end", "ended", "fin_sent", "finished",
        "high", "known", "life", "limit", "next", "number", "opened", "probing", "queued", "received",
        "restored", "starved", "stopped", "ticked",
    )  # fmt: skip

    def __init__(self, number: int, capacity: int, limit: int, *, start: int = 0, life: int = 0) -> None:
        self.number, self.capacity, self.limit = number, capacity, limit
        self.life = life  # which use of the number this is
        self.base = self.received = self.next = self.high = self.end = start
        self.known = start  # below: offsets that the peer may have seen; above: bytes that may still be moved
        self.opened = start > 0  # the peer has heard of this stream
        self.restored = False  # from a snapshot
        self.finished = False  # the owner will write no more
        self.aborted = False  # the owner gave up: the peer must not wait for what is missing
        self.stopped = False  # the peer wants no more
        self.fin_sent = False  # in this pass
        self.ended = False  # the peer has the end, and its program has taken all
        self.starved = False  # a write was short or the last that fits; its author waits for room
        self.probing = False  # ask the peer where it stands
        self.queued = False  # in the mux's queue of senders that may have something to send
        self.ticked = -1  # `received` at the last tick
        self._chunks: deque[bytes] = deque()
        self._first = start  # offset of the first chunk
        self._index = self._at = 0  # the chunk that `next` is in, and where in it

    @property
    def room(self) -> int:
        """How much `write` would accept."""
        free = self.capacity - (self.end - self.base)
        return free if free > 0 else 0

    @property
    def ready(self) -> int:
        """Bytes that could be sent now."""
        last = self.end if self.end < self.limit else self.limit
        return last - self.next if last > self.next else 0

    @property
    def urgent(self) -> bool:
        """A frame without payload should be sent now: the end, or a question."""
        return self.probing or (self.finished and not self.fin_sent and self.next == self.end)

    @property
    def pending(self) -> bool:
        """A frame could be sent now."""
        return (self.next < self.end and self.next < self.limit) or self.urgent

    @property
    def settled(self) -> bool:
        """The peer has received all there is."""
        return self.received == self.end and (self.ended or not self.finished)

    def write(self, data: "Buffer") -> int:
        """Takes what fits of `data` and returns how much that was.  Raises UsageError after finish."""
        if self.finished and not self.stopped:
            raise UsageError(f"stream {self.number} is finished and takes no more data")
        size = len(data) if type(data) is bytes else memoryview(data).nbytes
        if self.stopped:
            return size
        room = self.capacity - self.end + self.base
        count = size if size < room else max(room, 0)
        self.starved = size >= room
        if type(data) is bytes and count == size:
            self._append(data)  # immutable and whole: kept as it is
        else:
            view = memoryview(data)
            for at in range(0, count, _CHUNK):
                self._append(bytes(view[at : min(at + _CHUNK, count)]))
        self.end += count
        return count

    def _append(self, chunk: bytes) -> None:
        chunks = self._chunks
        if chunks and len(chunk) < _COALESCE and len(chunks[-1]) < _COALESCE:
            if self._index == len(chunks):
                self._index, self._at = self._index - 1, len(chunks[-1])
            chunks[-1] += chunk
        elif chunk:
            chunks.append(chunk)

    def finish(self) -> None:
        """No more will be written."""
        self.finished = True

    def abort(self) -> None:
        """Gives up: what was not sent yet never will be."""
        self.finished = self.aborted = True
        self.fin_sent = False
        self.received = self.base = self.next = self.end = self.high
        self._chunks.clear()
        self._first, self._index, self._at = self.end, 0, 0

    def take(self, size: int) -> "tuple[int, list[Part], int]":
        """The next frame's offset, payload of at most `size` bytes and flags; counts as sent."""
        offset = self.next
        want = min(size, self.end - offset, self.limit - offset)
        if want > 0:
            parts = self._parts(want)
            self.next = after = offset + want
            if after > self.high:
                self.high = after
                self.known = max(self.known, after)
        else:
            parts = []
        self.opened = True
        self.probing = False
        flags = 0
        if self.finished and self.next == self.end:
            self.fin_sent = True
            flags = FIN | ABORT if self.aborted else FIN
        return offset, parts, flags

    def _parts(self, left: int) -> "list[Part]":
        """The bytes from `next` on, so many, as they lie in the chunks."""
        chunks, index, at = self._chunks, self._index, self._at
        if not at and len(chunks[index]) == left:  # the last write, and it fits
            self._index = index + 1
            return [chunks[index]]
        parts: list[Part] = []
        while left > 0:
            chunk = chunks[index]
            count = len(chunk) - at
            if count <= left:
                parts.append(memoryview(chunk)[at:] if at else chunk)
                index, at = index + 1, 0
            else:
                count = left
                parts.append(memoryview(chunk)[at : at + count])
                at += count
            left -= count
        self._index, self._at = index, at
        return parts

    def acknowledge(self, received: int, released: int, limit: int, fin: bool) -> None:
        """The peer says where it stands.  Raises ProtocolError for what it cannot have."""
        if not released <= received <= self.high:
            raise ProtocolError(f"stream {self.number}: {received} acknowledged, {self.high} sent")
        if fin and not (self.finished and (received == self.end or self.aborted)):
            raise ProtocolError(f"stream {self.number}: an end acknowledged that was never sent")
        self.received = max(self.received, received)
        self.limit = max(self.limit, limit)
        if self.next < self.received:
            self._seek(self.received)
        self._release(released)
        if fin and (released == self.end or self.aborted):
            self.ended = True

    def go_back(self, expected: int) -> None:
        """The peer misses what begins at `expected`: sends again from there."""
        self.fin_sent = False
        if self.aborted or expected < self.received:  # the latter: asked before it came after all
            return
        if expected > self.high:
            raise ProtocolError(f"stream {self.number}: {expected} asked for, {self.high} sent")
        self._seek(expected)

    def tick(self) -> bool:
        """Time passes without progress: if something may have got lost, asks (an empty frame) and says True."""
        waits = self.high > self.received or (self.fin_sent and not self.ended) or self.limit < self.end
        self.probing = waits and self.ticked == self.received
        self.ticked = self.received if waits else -1
        return self.probing

    @property
    def waiting(self) -> bool:
        """Something is under way whose arrival has not been confirmed."""
        return self.high > self.received or (self.finished and not self.ended) or self.limit < self.end

    def shift(self, received: int) -> None:
        """The peer already has `received` bytes, more than this end has ever sent: moves what was never sent there."""
        distance = received - self.known
        self._release(self.known)
        self.base = self.received = self.high = self.known = received
        self.end += distance
        self.opened = True
        self._first += distance
        self._seek(received)

    def resume(self, received: int, released: int, limit: int) -> None:
        """A connection begins, and the peer stands here (`received` <= `end`)."""
        self.opened = self.opened or received > 0
        self.known = max(self.known, received)
        self.high = max(self.high, received)
        self.received = max(received, self.base)
        self.limit = limit
        self.fin_sent = self.probing = False
        self._release(max(released, self.base))
        self._seek(self.received)

    def restore(self, base: int, data: bytes, opened: bool) -> None:
        """Stands where a snapshot was taken.  The peer may have got any of it since."""
        self.base = self.received = self.next = self.high = self._first = base
        self.end = base
        for at in range(0, len(data), _CHUNK):
            self._append(data[at : at + _CHUNK])
        self.end += len(data)
        self.known = self.high = self.end
        self.opened, self.restored = opened, True

    def content(self) -> bytes:
        """Everything kept, from `base` to `end`."""
        return b"".join(self._chunks)[self.base - self._first :]

    def _release(self, released: int) -> None:
        """Forgets everything below `released`."""
        chunks = self._chunks
        while chunks and self._first + len(chunks[0]) <= released:
            self._first += len(chunks.popleft())
            self._index -= 1
        if self._index < 0:
            self._index = self._at = 0
        self.base = max(self.base, released)

    def _seek(self, offset: int) -> None:
        """Makes `offset` the next one to send."""
        self.next = offset
        index, at = 0, offset - self._first
        while index < len(self._chunks) and at >= len(self._chunks[index]):
            at -= len(self._chunks[index])
            index += 1
        self._index, self._at = index, at
