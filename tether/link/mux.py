"""The streams of one endpoint: takes in DATA, ACK, NAK and CLOSED frames (what goes out: tether.link.outbox).

Memory: a stream exists from its first byte until both of its ends are done with it.  Who sends forgets it when the end
has been acknowledged and says CLOSED; who receives forgets it when it is read to the end and CLOSED has come.  Until
then its position stays, so that a late duplicate does not bring it back to life.
"""

from _weakref import ref

from tether.link.errors import ProtocolError
from tether.link.events import Aborted, Drained, Stopped, Writable
from tether.link.frame import ABORT, FIN, FLAG_BITS, LIFE_SHIFT, LIVES, STOP, read_ack
from tether.link.messages import CONTROL_STREAM
from tether.link.outbox import Outbox
from tether.link.receiver import NOTHING, URGENT, Receiver
from tether.link.sender import Sender
from tether.link.stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.link.events import Event
    from tether.link.hello import Hello
    from tether.link.limits import Limits

_MOST_FINISHED = 1024  # a duplicate is no older than what the transport can hold


class Mux:
    """See the module.  `changed` is called when there may be something to send."""

    def __init__(self, limits: "Limits", durable: bool, events: "list[Event]", changed: "Callable[[], None]") -> None:
        self.limits, self.durable = limits, durable
        self.senders: dict[int, Sender] = {}
        self.receivers: dict[int, Receiver] = {}
        self._events = events
        self._readable: set[int] = set()  # streams whose Readable is among the events that nobody has fetched yet
        self._facades: dict[int, ref[Stream]] = {}
        self.outbox = Outbox(limits, self.senders, changed)
        self.lives = 0
        # Numbers and lives: of receivers forgotten of late, which a duplicate must not revive; of senders that are
        # done, which no saved snapshot says yet.
        self._finished: dict[int, int] = {}
        self.parted: dict[int, int] = {}
        self.sender(CONTROL_STREAM)
        self.receiver(CONTROL_STREAM)

    @property
    def peer(self) -> "Hello | None":
        """Who is at the other end, while the connection is live."""
        return self.outbox.peer

    # what the owner does

    def stream(self, number: int) -> Stream:
        """The stream's handle; the same one as long as somebody holds it."""
        known = self._facades.get(number)
        stream = known() if known else None
        if stream is None:
            stream = Stream(self, number, self.senders.get(number), self.receivers.get(number))
            self._facades[number] = ref(stream, lambda gone: self._dropped(number, gone))
        return stream

    def _dropped(self, number: int, gone: "ref[Stream]") -> None:
        if self._facades.get(number) is gone:
            del self._facades[number]

    def sender(self, number: int, start: int = 0, life: int | None = None) -> Sender:
        """The sending half, made if need be; `start` and `life` if the peer has a part of it already."""
        sender = self.senders.get(number)
        if sender is None:
            control = number == CONTROL_STREAM
            capacity = self.limits.control_window if control else self.limits.ring
            credit = self.peer_window(number)
            if life is None:
                life = self._next_life(number)
            sender = self.senders[number] = Sender(number, capacity, start + credit, start=start, life=life)
            self._attach(number)
        return sender

    def peer_window(self, number: int) -> int:
        """The credit that a stream begins with."""
        if self.peer is None:
            return 0
        return self.peer.control if number == CONTROL_STREAM else self.peer.window

    def _next_life(self, number: int) -> int:
        if number == CONTROL_STREAM:
            return 0
        self.lives = (self.lives + 1) % LIVES
        return self.lives

    def receiver(self, number: int) -> Receiver:
        """The receiving half, made if need be."""
        receiver = self.receivers.get(number)
        if receiver is None:
            window = self.limits.control_window if number == CONTROL_STREAM else self.limits.window
            receiver = self.receivers[number] = Receiver(number, window)
            self._attach(number)
        return receiver

    def opened(self, number: int, life: int) -> Receiver:
        """The receiving half of a stream that the peer has opened.  Raises ProtocolError if there are too many."""
        receiver = self.receivers.get(number)
        if receiver is not None and receiver.life != life and receiver.end is not None:
            receiver.closed = True  # its CLOSED got lost, the number is in use again
            self._replace(receiver)
        receiver = self.receiver(number)
        if receiver.expected == 0 and receiver.end is None:
            receiver.life = life  # of an earlier one nothing has arrived
        if not receiver.opened:
            receiver.opened = True
            done = [one for one in self.receivers.values() if one.done]
            if sum(one.opened for one in self.receivers.values()) - len(done) > self.limits.streams + 1:  # 1: control
                raise ProtocolError(f"stream {number} would be one more than the limit of {self.limits.streams}")
            for one in done[: -self.limits.streams]:  # their CLOSED got lost
                one.closed = True
                self._forget_receiver(one)
        return receiver

    def _attach(self, number: int) -> None:
        known = self._facades.get(number)
        stream = known() if known else None
        if stream is not None:
            stream.attach(self.senders.get(number), self.receivers.get(number))

    def break_streams(self) -> None:
        """The other end is gone for good: every handle says so from now on."""
        for known in list(self._facades.values()):
            stream = known()
            if stream is not None:
                stream.broken = True

    def consumed(self, receiver: Receiver) -> None:
        """The owner took bytes from `receiver`."""
        if not self.durable:
            receiver.release(receiver.consumed, receiver.consumed == receiver.end)
        self.outbox.owe(receiver)
        if receiver.closed:
            self._forget_receiver(receiver)

    def release(self, receiver: Receiver, released: int, final: bool) -> None:
        """The peer need not keep what is below `released` of this stream, and if `final` the stream itself."""
        receiver.release(released, final)
        self.outbox.owe(receiver)
        self._forget_receiver(receiver)

    def restart(self, peer: "Hello") -> None:
        """A connection begins."""
        self.outbox.peer = peer
        self._finished.clear()
        for receiver in self.receivers.values():
            receiver.restart()

    def fetched(self) -> None:
        """The owner has fetched the events."""
        self._readable.clear()

    # frames that come in

    def take_data(self, number: int, flags: int, offset: int, payload: memoryview) -> None:
        """DATA.  Raises ProtocolError for what a well-behaved peer does not send."""
        if flags and number == CONTROL_STREAM:
            raise ProtocolError("the control stream cannot end")
        life, flags = flags >> LIFE_SHIFT, flags & FLAG_BITS
        receiver = self.receivers.get(number)
        if receiver is None or receiver.life != life or not receiver.opened:
            if self._finished.get(number) == life:
                return
            receiver = self.opened(number, life)
            if receiver.life != life:
                return  # of a former life
        ended_before, arrived = receiver.end, receiver.expected
        if receiver.accept(offset, payload, flags):
            self.outbox.complain(receiver)
            return
        news = receiver.expected - arrived
        if receiver.end != ended_before and flags & ABORT:
            self._events.append(Aborted(stream=number))
        if (news or receiver.end != ended_before) and not receiver.stopped and number not in self._readable:
            self._readable.add(number)
            if number != CONTROL_STREAM:
                self._events.append(receiver.readable)
        if receiver.stopped or receiver.consumed == receiver.end:
            self.consumed(receiver)
        self.outbox.owe(receiver, news)

    def take_ack(self, number: int, flags: int, received: int, payload: memoryview) -> None:
        """ACK."""
        released, limit = read_ack(payload)
        life, flags = flags >> LIFE_SHIFT, flags & FLAG_BITS
        sender = self.senders.get(number)
        if sender is None or sender.life != life:
            # The CLOSED got lost: say it again, unless the peer asks for it without end.
            if sender is None and self.parted.get(number) != life and not self.outbox.crowded:
                self.outbox.close(number, life)
            return
        sender.acknowledge(received, released, limit, bool(flags & FIN))
        if flags & STOP and not sender.stopped:
            sender.stopped = True
            sender.abort()
            self._events.append(Stopped(stream=number))
        self.after_progress(sender)

    def after_progress(self, sender: Sender) -> None:
        """The peer has taken something from `sender`: what follows from that."""
        if sender.ended:
            self._forget_sender(sender)
            return
        if sender.starved and sender.room >= sender.capacity // 4:
            sender.starved = False
            self._events.append(Writable(stream=sender.number))
        self.outbox.wrote(sender)

    def take_nak(self, number: int, flags: int, expected: int) -> None:
        """NAK."""
        sender = self.senders.get(number)
        if sender is not None and sender.life == flags >> LIFE_SHIFT:
            sender.go_back(expected)
            self.outbox.wrote(sender)

    def take_closed(self, number: int, flags: int) -> None:
        """CLOSED: no frame of this stream will come any more."""
        receiver = self.receivers.get(number)
        if receiver is not None and receiver.life == flags >> LIFE_SHIFT:
            self.close(receiver)

    def close(self, receiver: Receiver) -> None:
        """The peer has forgotten this stream."""
        if receiver.end is None and receiver.expected == 0:
            return  # never opened: a stop can wait here for a stream that comes later
        if receiver.end is None:
            receiver.lose()
            self._events.append(Aborted(stream=receiver.number))
        receiver.closed = True
        self._forget_receiver(receiver)

    def part(self, number: int, life: int) -> None:
        """This end has nothing to send in this life of a stream: the peer can forget it, as soon as that is certain.

        Should a durable end be restored from before, the peer must still know that it has everything.
        """
        if self.durable:
            self.parted[number] = life
        else:
            self.outbox.close(number, life)

    def certain(self, number: int, life: int) -> None:
        """A saved snapshot says that this sender is done."""
        if self.parted.get(number) == life:
            del self.parted[number]
            self.outbox.close(number, life)

    def drop(self, sender: Sender) -> None:
        """The peer is done with this life of the stream, and this end was not told."""
        sender.finished = sender.ended = True
        self._forget_sender(sender)

    def _forget_sender(self, sender: Sender) -> None:
        del self.senders[sender.number]
        self.part(sender.number, sender.life)
        if not sender.aborted:
            self._events.append(Drained(stream=sender.number))
        self.outbox.room_for_one()

    def _forget_receiver(self, receiver: Receiver) -> None:
        if receiver.closed and receiver.ended and self.receivers.get(receiver.number) is receiver:
            self._replace(receiver)
            self._finished[receiver.number] = receiver.life
            if len(self._finished) > _MOST_FINISHED:
                del self._finished[next(iter(self._finished))]

    def _replace(self, receiver: Receiver) -> None:
        """Takes it out; its handle goes on saying that it has ended, or has something left to read."""
        del self.receivers[receiver.number]
        self.outbox.forget(receiver)

    # time

    @property
    def waiting(self) -> bool:
        """Some stream waits for the peer."""
        return any(sender.waiting for sender in self.senders.values()) or any(
            receiver.done for receiver in self.receivers.values()
        )

    @property
    def settled(self) -> bool:
        """Everything that was written has arrived, and is released if the peer saves what it gets."""
        durable = self.peer is not None and self.peer.durable
        return all(one.settled and (not durable or one.base == one.end) for one in self.senders.values())

    def tick(self) -> None:
        """Time passes: asks about what may have got lost."""
        for sender in self.senders.values():
            if sender.tick():
                self.outbox.wrote(sender)
        for receiver in self.receivers.values():
            if receiver.done and receiver.due == NOTHING:  # waits for CLOSED
                receiver.due = URGENT
                self.outbox.owe(receiver)
