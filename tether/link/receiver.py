"""The receiving half of a stream: what has arrived and was not read yet.

    released <= consumed <= expected <= limit          all are offsets from the start of the stream
    released  the peer need not keep anything below any more (what was consumed, or what was saved; see Endpoint)
    consumed  the owner has read everything below
    expected  everything below has arrived
    limit     the credit given to the peer
"""


from tether.link.errors import ProtocolError
from tether.link.events import Readable
from tether.link.frame import ABORT, FIN, STOP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
else:
    from _collections import deque  # the same, without importing `collections`

_COALESCE = 4096  # shorter payloads are joined, so that the buffer is not made of object headers

NOTHING, LAZY, URGENT = 0, 1, 2  # how much an acknowledgement is wanted


class Receiver:
    """See the module.  Its methods return or set `due`: whether the peer is owed an acknowledgement, and how soon."""

    __slots__ = (
        "_at", "_chunks", "_worth", "aborted", "closed", "complained", "consumed", "due", "end", "expected", "final",
        "last", "life", "limit", "number", "opened", "readable", "released", "stopped", "told_limit", "told_received",
        "window",
    )  # fmt: skip

    def __init__(self, number: int, window: int, *, start: int = 0, life: int = 0) -> None:
        self.number, self.window = number, window
        self.life = life  # which use of the number this is
        self.released = self.consumed = self.expected = start
        self.limit = start + window
        self.end: int | None = None  # where the stream ends, once that is known
        self.final = False  # that the stream has ended will not be forgotten
        self.aborted = False  # the peer gave up
        self.opened = start > 0  # the peer has begun it
        self.closed = False  # the peer has forgotten this stream
        self.stopped = False  # the owner wants no more
        self.complained = False  # a NAK for `expected` is under way
        self.last = start  # where the last frame began; a step back means that the peer has gone back
        self.due = NOTHING
        self.told_received, self.told_limit = start, self.limit
        self.readable = Readable(stream=number)  # the event; one will do
        self._worth = window // 2  # acknowledgements are put off until they are worth a frame: half of the window
        self._chunks: deque[bytes] = deque()
        self._at = 0  # so much of the first chunk has been read

    @property
    def buffered(self) -> int:
        """Bytes that can be read."""
        return self.expected - self.consumed

    @property
    def ended(self) -> bool:
        """Everything was read and no more will come."""
        return self.consumed == self.end

    @property
    def done(self) -> bool:
        """As `ended`, and the peer may forget it too."""
        return self.final and self.released == self.end

    @property
    def flags(self) -> int:
        """What an acknowledgement says besides numbers."""
        return (FIN if self.done else 0) | (STOP if self.stopped else 0)

    def accept(self, offset: int, payload: memoryview, flags: int) -> bool:
        """Takes in a DATA frame.  True: a NAK is wanted, bytes before `offset` are missing.

        Raises ProtocolError for data beyond the credit or beyond the end.
        """
        after = offset + len(payload)
        if offset == self.expected < after <= self.limit and not flags and self.end is None:  # nearly always
            self.last = offset
            self._take(payload, after)
            return False
        if self.aborted:  # what comes now was under way already
            self.due = URGENT
            return False
        beyond = after > self.limit and not (flags & ABORT and not payload)  # who gives up may stand anywhere
        if beyond or (self.end is not None and after > self.end):
            raise ProtocolError(f"stream {self.number}: data up to {after}, beyond its credit or its end")
        stepped_back, self.last = offset < self.last, offset
        if offset > self.expected and not flags & ABORT:
            complain = not self.complained or stepped_back or not payload
            self.complained = True
            return complain
        if after > self.expected and offset <= self.expected:
            self._take(payload[self.expected - offset :], after)
        else:  # nothing new: the peer does not know where we stand
            self.due = URGENT
        if flags & FIN and self.end is None:
            self._take_end(after, bool(flags & ABORT))
        return False

    def _take_end(self, end: int, aborted: bool) -> None:
        """The stream ends at `end`; or here, if its sender gave up."""
        if end < self.expected:
            raise ProtocolError(f"stream {self.number}: ends at {end}, {self.expected} bytes have arrived")
        self.aborted = aborted
        self.end = self.expected if aborted else end
        self.due = URGENT

    def _take(self, payload: memoryview, after: int) -> None:
        """These are the next bytes, up to `after`."""
        chunks = self._chunks
        if self.stopped:
            self.consumed = after
        elif chunks and len(payload) < _COALESCE and len(chunks[-1]) < _COALESCE:
            chunks[-1] += payload
        else:
            chunks.append(bytes(payload))
        self.expected = after
        self.complained = False
        if after - self.told_received >= self._worth:
            self.due = URGENT
        elif self.due == NOTHING:
            self.due = LAZY

    def read(self, limit: int) -> bytes:
        """Takes at most `limit` bytes."""
        chunks, at = self._chunks, self._at
        if not chunks or limit <= 0:
            return b""
        data = chunks[0]
        if len(data) - at > limit:
            data = data[at : at + limit]
            self._at = at + limit
        else:
            chunks.popleft()
            if at:
                data = data[at:]
                self._at = 0
            if chunks and len(data) < limit:
                data = self._join(data, limit)
        self._consume(self.consumed + len(data))
        return data

    def _join(self, first: bytes, limit: int) -> bytes:
        """`first`, and of the chunks after it as many as fit into `limit` bytes with it."""
        chunks, parts, left = self._chunks, [first], limit - len(first)
        while chunks and len(chunks[0]) <= left:
            left -= len(chunks[0])
            parts.append(chunks.popleft())
        return b"".join(parts)

    def take(self, count: int) -> bytes:
        """Exactly the next `count` bytes, which must be there."""
        data = self.read(count)
        while len(data) < count:
            data += self.read(count - len(data))
        return data

    def peek(self, count: int) -> bytes:
        """The next `count` bytes without taking them; fewer if there are fewer."""
        chunks, at = self._chunks, self._at
        if len(chunks) > 1 and len(chunks[0]) - at < count:
            joined = b"".join(chunks)[at:]
            self._clear()
            chunks.append(joined)
            at = 0
        return chunks[0][at : at + count] if chunks else b""

    def _clear(self) -> None:
        self._chunks.clear()
        self._at = 0

    def stop(self) -> None:
        """Discards what is here and what will come.  Told at once, or when the stream is opened."""
        self.stopped = True
        self._clear()
        self._consume(self.expected)
        self.due = URGENT if self.expected or self.end is not None else NOTHING

    def _consume(self, consumed: int) -> None:
        self.consumed = consumed
        if consumed == self.end or consumed + self.window - self.told_limit >= self._worth:
            self.due = URGENT
        elif self.due == NOTHING:
            self.due = LAZY

    def release(self, released: int, final: bool) -> None:
        """The peer need not keep anything below `released`; nor, if `final`, that the stream has ended there."""
        if released > self.released or final > self.final:
            self.released = max(self.released, released)
            self.final = self.final or final
            if self.final and self.released == self.end:
                self.due = URGENT
            elif self.due == NOTHING:
                self.due = LAZY

    def lose(self) -> None:
        """The peer has nothing more of this stream and does not know its end."""
        self.end = self.expected
        self.aborted = not self.stopped

    def tell(self) -> tuple[tuple[int, int, int], int]:
        """What an acknowledgement says: received, released, limit; and flags.  It counts as told."""
        self.due = NOTHING
        self.limit = max(self.limit, self.consumed + self.window)
        self.told_received, self.told_limit = self.expected, self.limit
        flags = self.flags if self.end is not None or self.stopped else 0
        return (self.expected, self.released, self.limit), flags

    def restart(self) -> None:
        """A connection begins: says everything anew."""
        self.complained = False
        self.last = self.expected
        self.due = NOTHING

    def rewind(self) -> None:
        """Forgets what has arrived and was not consumed: the peer will send it again."""
        self._clear()
        self.expected = self.consumed

    def restore(self, consumed: int, life: int, *, end: int | None, stopped: bool) -> None:
        """Stands where a snapshot was taken, which covers everything that was consumed."""
        self.jump(consumed)
        self.life, self.end, self.stopped = life, end, stopped
        self.final = end is not None
        self.opened = consumed > 0 or end is not None

    def jump(self, start: int) -> int:
        """The peer keeps nothing below `start`: goes on there, and says how many bytes that skips."""
        skipped = start - self.consumed
        self._clear()
        self.released = self.consumed = self.expected = start
        self.limit = start + self.window
        self.restart()
        return skipped
