"""A stream as its user sees it: two independent directions under one number."""

from tether.link.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from tether.link.mux import Mux
    from tether.link.receiver import Receiver
    from tether.link.sender import Sender


class Stream:
    """Comes from `Endpoint.stream(number)`.  None of its methods waits.

    It outlives the connection and even the stream: after the end it goes on saying so.  `broken` means that the VM (or
    the appliance) it led to is not there any more and never will be.
    """

    __slots__ = ("__weakref__", "_in", "_mux", "_out", "broken", "number")

    def __init__(self, mux: "Mux", number: int, sender: "Sender | None", receiver: "Receiver | None") -> None:
        self.number = number
        self.broken = False
        self._mux = mux
        self._out, self._in = sender, receiver

    def attach(self, sender: "Sender | None", receiver: "Receiver | None") -> None:
        """The mux has made halves for this number."""
        self._out, self._in = sender or self._out, receiver or self._in

    # outgoing

    def write(self, data: "Buffer") -> int:
        """Takes what fits of `data` into the ring and returns how many bytes that was.

        If that was less than everything, or if there is no room left, a Writable event says when to go on.  Bytes are
        kept until the peer has acknowledged them.  After Stopped everything is taken and discarded.  Raises UsageError
        after `finish`.
        """
        sender = self._sender()
        count = sender.write(data)
        self._mux.outbox.wrote(sender)
        return count

    def finish(self) -> None:
        """No more will be written; the end travels behind the data.  A second call does nothing."""
        if not self.broken:
            sender = self._sender()
            sender.finish()
            self._mux.outbox.wrote(sender)

    def abort(self) -> None:
        """Gives up writing: what has not been sent yet never will be, and the peer gets Aborted."""
        sender = self._out
        if sender is not None and not sender.ended and not self.broken:
            sender.abort()
            self._mux.outbox.wrote(sender)

    @property
    def room(self) -> int:
        """How many bytes `write` would take now."""
        if self._out is not None:
            return 0 if self._out.finished and not self._out.stopped else self._out.room
        return 0 if self.broken else self._mux.limits.ring

    @property
    def drained(self) -> bool:
        """Everything written, and the end if there is one, has been taken by the peer's program."""
        sender = self._out
        return sender is None or (sender.ended if sender.finished else sender.base == sender.end)

    @property
    def stopped(self) -> bool:
        """The peer wants no more of what is written here."""
        return self._out is not None and self._out.stopped

    # incoming

    def read(self, limit: int) -> bytes:
        """Takes up to `limit` received bytes and gives their credit back; b"" if there are none (see `ended`)."""
        receiver = self._in
        if receiver is None or self.broken:
            return b""
        data = receiver.read(limit)
        if data:
            self._mux.consumed(receiver)
        return data

    def stop(self) -> None:
        """Wants no more: discards what was received and what still comes; the peer gets Stopped."""
        if self._in is None and not self.broken:
            self._in = self._mux.receiver(self.number)
        if self._in is not None and not self._in.stopped and not self.broken:
            self._in.stop()
            self._mux.consumed(self._in)

    @property
    def buffered(self) -> int:
        """Received bytes that were not read yet."""
        return self._in.buffered if self._in is not None else 0

    @property
    def ended(self) -> bool:
        """The peer has finished (or aborted, or is gone for good) and everything was read."""
        return self.broken or (self._in is not None and self._in.ended)

    @property
    def aborted(self) -> bool:
        """The peer gave up: what was read is not all there should have been."""
        return self.broken or (self._in is not None and self._in.aborted)

    def reset(self) -> None:
        """Abandons both directions."""
        self.abort()
        self.stop()

    def _sender(self) -> "Sender":
        if self.broken:
            raise UsageError(f"stream {self.number}: the other end is not there any more")
        if self._out is None:
            self._out = self._mux.sender(self.number)
        return self._out
