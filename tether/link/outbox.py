"""Which frame goes out next.

First complaints about gaps, acknowledgements and farewells, then the control stream, then the other streams in turn,
one frame each.  A call of `gather` returns about one longest payload, so that control is never behind more bulk data
than that.
"""

import sys

from tether.link.frame import CLOSED, DATA, LIFE_SHIFT, NAK, build, build_ack
from tether.link.messages import CONTROL_STREAM
from tether.link.receiver import LAZY, URGENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from tether.link.frame import Part
    from tether.link.hello import Hello
    from tether.link.limits import Limits
    from tether.link.receiver import Receiver
    from tether.link.sender import Sender
else:
    from _collections import deque  # the same, without importing `collections`


class Outbox:
    """See the module.  `changed` is called when there may be something to send; `peer` is set while there is one."""

    def __init__(self, limits: "Limits", senders: "dict[int, Sender]", changed: "Callable[[], None]") -> None:
        self.limits = limits
        self.peer: Hello | None = None
        self._senders, self._changed = senders, changed
        self._queue: deque[Sender] = deque()  # senders that may have something to send
        self._unopened: dict[int, Sender] = {}  # senders that wait until the peer has room for one more stream
        self._urgent: dict[int, Receiver] = {}  # (used as an ordered set)
        self._lazy: dict[int, Receiver] = {}
        self._naks: dict[int, Receiver] = {}
        self._closed: dict[int, int] = {}  # number and life of streams that the peer is to forget
        self._unacknowledged = 0  # bytes received since acknowledgements went out

    # what should go out

    def wrote(self, sender: "Sender") -> None:
        """There may be something to send in `sender`."""
        if sender.next < sender.end or sender.urgent:  # `gather` looks whether there is credit
            if not sender.queued:
                sender.queued = True
                self._queue.append(sender)
            self._changed()

    def owe(self, receiver: "Receiver", news: int = 0) -> None:
        """Sees to it that the peer gets the acknowledgement that `receiver` finds due; `news` bytes have arrived."""
        self._unacknowledged += news
        if receiver.closed:
            return
        if receiver.due == URGENT:
            self._lazy.pop(receiver.number, None)
            self._urgent[receiver.number] = receiver
            self._changed()
        elif receiver.due == LAZY:
            self._lazy[receiver.number] = receiver
            if self.limits.flight and self._unacknowledged >= self.limits.flight // 4:
                self.hurry()

    @property
    def owes(self) -> bool:
        """Some acknowledgement has been put off."""
        return bool(self._lazy)

    @property
    def due(self) -> bool:
        """`gather` may have something; more precisely only it knows."""
        return bool(self._queue or self._urgent or self._naks or self._closed)

    def hurry(self) -> None:
        """Makes acknowledgements that were put off go out with the next frames."""
        self._urgent.update(self._lazy)
        self._lazy.clear()
        self._changed()

    def complain(self, receiver: "Receiver") -> None:
        """Something is missing before what has arrived."""
        self._naks[receiver.number] = receiver
        self._changed()

    def close(self, number: int, life: int) -> None:
        """The peer can forget this stream."""
        self._closed[number] = life
        self._changed()

    @property
    def crowded(self) -> bool:
        """More farewells wait than an honest peer can ask for."""
        return len(self._closed) >= self.limits.streams

    def room_for_one(self) -> None:
        """The peer has room for one more stream."""
        waiting, self._unopened = self._unopened, {}
        for sender in waiting.values():
            self.wrote(sender)

    def forget(self, receiver: "Receiver") -> None:
        """There is nothing to say about it any more."""
        for owed in (self._urgent, self._lazy, self._naks):
            owed.pop(receiver.number, None)

    # what goes out

    def gather(self) -> "list[Part]":
        """The pieces of the next frames; empty if there is nothing to send now."""
        peer = self.peer
        if peer is None or not self.due:
            return []
        parts: list[Part] = []
        key = peer.key
        if self._naks:
            self._gather_naks(parts, key)
        if self._urgent:
            self._gather_acks(self._urgent, parts, key)
        if self._closed:
            self._gather_closed(parts, key)
        if self._queue:
            self._gather_data(parts, peer, key)
        if parts and self._lazy:
            self._gather_acks(self._lazy, parts, key)
        return parts

    def _gather_naks(self, parts: "list[Part]", key: int) -> None:
        for number, receiver in self._naks.items():
            life = receiver.life << LIFE_SHIFT
            parts += build(NAK, key, flags=life, stream=number, offset=receiver.expected)
        self._naks.clear()

    def _gather_acks(self, owed: "dict[int, Receiver]", parts: "list[Part]", key: int) -> None:
        for number, receiver in owed.items():
            positions, flags = receiver.tell()
            parts.append(build_ack(key, flags | receiver.life << LIFE_SHIFT, number, positions))
        owed.clear()
        if not self._lazy:
            self._unacknowledged = 0

    def _gather_closed(self, parts: "list[Part]", key: int) -> None:
        for number, life in self._closed.items():
            parts += build(CLOSED, key, flags=life << LIFE_SHIFT, stream=number)
        self._closed.clear()

    def _gather_data(self, parts: "list[Part]", peer: "Hello", key: int) -> None:
        """DATA frames: one of the control stream, then of the others in turn until a payload's worth is together."""
        payload = self.limits.payload if self.limits.payload < peer.payload else peer.payload
        allowed = self._allowed(peer) if peer.flight else sys.maxsize
        control = self._senders.get(CONTROL_STREAM)
        if control is not None and control.queued and (control.urgent or (control.ready and allowed)):
            allowed -= self._gather_frame(control, parts, peer, key, min(payload, allowed))
        queue, together = self._queue, 0
        for _ in range(len(queue)):
            sender = queue.popleft()
            sender.queued = False
            if sender is not control:
                ready = min(sender.end, sender.limit) - sender.next
                if not (ready > 0 or sender.urgent) or self._senders.get(sender.number) is not sender:
                    continue
                if not sender.opened and not self._may_open(peer):
                    self._unopened[sender.number] = sender
                    continue
                size = min(ready, payload, allowed - together)
                busy = sender.next - sender.received >= peer.window // 2  # it owes an acknowledgement
                if busy and size < payload // 2 and not (sender.finished or sender.probing):
                    sender.queued = True  # until that comes, more may come together
                    queue.append(sender)
                    continue
                if together and together + size > payload:
                    sender.queued = True
                    queue.appendleft(sender)
                    break
                if size > 0 or sender.urgent:
                    together += self._gather_frame(sender, parts, peer, key, max(0, size))
            if sender.next < sender.end and sender.pending:
                sender.queued = True
                queue.append(sender)

    def _gather_frame(self, sender: "Sender", parts: "list[Part]", peer: "Hello", key: int, size: int) -> int:
        offset, payload, flags = sender.take(size)
        flags |= sender.life << LIFE_SHIFT
        parts += build(
            DATA, key, flags=flags, stream=sender.number, offset=offset, parts=payload, ends=peer.ends_suffice
        )
        return sender.next - offset

    def _allowed(self, peer: "Hello") -> int:
        """How many bytes of data may go out now to a peer that limits that."""
        return max(0, peer.flight - sum(sender.next - sender.received for sender in self._senders.values()))

    def _may_open(self, peer: "Hello") -> bool:
        opened = sum(sender.opened for sender in self._senders.values() if sender.number != CONTROL_STREAM)
        return opened < peer.streams
