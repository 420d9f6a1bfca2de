"""One end of the link: a state machine without file descriptors, threads or clocks.

Bytes from the transport go in (`receive`, or `space` and `filled` without a copy), bytes for it come out (`transmit`,
or `gather` as pieces for writev), and `events` says what happened in between.  `tether.link.wire` connects it to a
file descriptor.  See docs/protocol.md for the wire and docs/link.md for what its user can rely on.

A connection goes through three phases: DOWN, GREETING (both say hello, then where their streams stand), LIVE.
"""

import os

from tether.link import cbor, resume
from tether.link.control import ANSWER, EVENT
from tether.link.errors import ProtocolError, UsageError
from tether.link.events import Connected, Disconnected, Refused
from tether.link.frame import ACK, BYE, CLOSED, DATA, HELLO, NAK, RESUME, Decoder, build
from tether.link.hello import (
    APPLIANCE,
    INSTANCE_SIZE,
    NONCE_SIZE,
    Hello,
    Resume,
    agree,
    hello_of,
    objection,
    pack,
    read_hello,
    read_resume,
)
from tether.link.limits import PORT, Limits
from tether.link.messages import CONTROL_STREAM
from tether.link.messenger import Messenger
from tether.link.mux import Mux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from tether.link.events import Event
    from tether.link.frame import Frame, Part
    from tether.link.record import Record
    from tether.link.stream import Stream

DOWN, GREETING, LIVE = 0, 1, 2


class Endpoint:
    """See the module.  `role` is TETHER or APPLIANCE.

    `instance` is new for every start of a tether; an appliance that was restored keeps its own.  With `durable` the
    peer keeps what this end has read until `saved` (see tether.link.snapshot).  `software` is shown to people when
    the two ends do not fit.
    """

    def __init__(
        self,
        role: str,
        limits: Limits = PORT,
        *,
        instance: bytes = b"",
        durable: bool = False,
        software: str = "",
        random: "Callable[[int], bytes]" = os.urandom,
    ) -> None:
        self.role, self.limits, self.durable, self.software = role, limits, durable, software
        self.instance = instance or random(INSTANCE_SIZE)
        self.phase = DOWN
        self.on_output: Callable[[], None] = _nobody
        self.stale = 0  # frames ignored because they came before the connection was live
        self._random = random
        self._events: list[Event] = []
        self._decoder = Decoder(limits.payload, limits.ends_suffice)
        self._mine = self._new_hello()
        self._peer: Hello | None = None  # of this connection
        self.known = b""  # instance of the last peer that this end was live with
        self._owed: set[int] = set()  # opening frames, and a BYE, to send
        self._bye = ""
        self.idle = True  # `gather` has nothing; `on_output` is called when that changes
        self.mux = self._new_mux()
        self.messenger = Messenger(role, self.instance, self.mux, self._events)

    def renew(self) -> None:
        """Becomes an end that nobody has met: for a copy of a VM, in whose memory it is what it is in every copy.

        Only before it was first connected.
        """
        self.instance = self._random(INSTANCE_SIZE)
        self.messenger = Messenger(self.role, self.instance, self.mux, self._events)

    def _new_mux(self) -> Mux:
        return Mux(self.limits, self.durable, self._events, self._poke)

    def _new_hello(self) -> Hello:
        connection = self._random(NONCE_SIZE)
        return hello_of(
            self.role,
            self.limits,
            instance=self.instance,
            connection=connection,
            durable=self.durable,
            software=self.software,
        )

    # the transport

    def connected(self) -> None:
        """The transport is there: begins to greet."""
        self._end_connection("")
        self._mine = self._new_hello()
        self._decoder.reset(self._mine.key)
        self.phase = GREETING
        self._owe(HELLO)

    def disconnected(self, reason: str = "the transport has gone") -> None:
        """The transport is gone.  Streams keep what they hold."""
        self._end_connection(reason)
        self.phase = DOWN

    def _end_connection(self, reason: str) -> None:
        if self.phase == LIVE:
            self._events.append(Disconnected(reason=reason or "connected anew"))
            self.mux.receiver(CONTROL_STREAM).rewind()  # the peer begins its message again
        self._peer = self.mux.outbox.peer = None
        self._owed.clear()

    def receive(self, data: "Buffer") -> None:
        """Takes bytes of the transport.  Raises ProtocolError: end this connection (`disconnected`), keep the rest."""
        rest = memoryview(data)
        while rest:
            rest = memoryview(self._decoder.feed(rest))
            self._take_frames()

    def space(self) -> memoryview:
        """Where bytes of the transport can be read into; then call `filled`."""
        return self._decoder.space()

    def filled(self, count: int) -> None:
        """`count` bytes were read into `space`.  Raises as `receive`."""
        self._decoder.filled(count)
        self._take_frames()

    def transmit(self) -> bytes:
        """The next bytes for the transport: about one longest payload; b"" if there is nothing now."""
        return b"".join(self.gather())

    def gather(self) -> "list[Part]":
        """As `transmit`, in pieces for writev."""
        outbox = self.mux.outbox
        parts = self._gather_owed() if self._owed else outbox.gather()
        self.idle = not (parts and outbox.due)
        return parts

    def _gather_owed(self) -> "list[Part]":
        """What opens a connection goes first, a BYE behind all that is due: nothing after it is looked at."""
        owed, self._owed = self._owed, set()
        parts: list[Part] = []
        if HELLO in owed:
            parts += build(HELLO, 0, parts=[pack(self._mine)])
        peer = self._peer
        if RESUME in owed and peer is not None:
            parts += build(RESUME, 0, parts=[pack(self._new_resume(peer))])
        parts += self.mux.outbox.gather()
        if BYE in owed and peer is not None:
            parts += build(BYE, peer.key, parts=[cbor.dumps({"reason": self._bye})])
        return parts

    def events(self) -> "list[Event]":
        """What happened since the last call."""
        events = list(self._events)
        self._events.clear()
        self.mux.fetched()
        return events

    # time

    @property
    def waiting(self) -> bool:
        """Something may have got lost: call `tick` when nothing has happened for a while."""
        return self.phase == GREETING or self._decoder.partial or (self.phase == LIVE and self.mux.waiting)

    @property
    def owes(self) -> bool:
        """Acknowledgements were put off: call `acknowledge` within about 20 ms, unless frames go out before."""
        return self.mux.outbox.owes

    def acknowledge(self) -> None:
        """Lets the acknowledgements that were put off go out."""
        self.mux.outbox.hurry()

    def tick(self) -> None:
        """Some time has passed without progress: repeats what may have got lost.  Raises as `receive`."""
        if self.phase == GREETING:
            self._owe(HELLO)
            if self._peer is not None:
                self._owe(RESUME)
        elif self.phase == LIVE:
            self.mux.tick()
        if self._decoder.tick():
            self._take_frames()

    @property
    def settled(self) -> bool:
        """Everything written has arrived at the peer (and is saved there, if it is a peer that saves)."""
        return self.phase == LIVE and not self._owed and self.mux.settled

    @property
    def noise(self) -> tuple[int, int]:
        """Bytes skipped because they were no frame, and frames that were damaged."""
        return self._decoder.noise, self._decoder.damaged

    # messages and streams

    def stream(self, number: int) -> "Stream":
        """The stream of this number; both ends know what it means, nothing has to be opened."""
        if number == CONTROL_STREAM:
            raise UsageError("the control stream belongs to the endpoint")
        return self.mux.stream(number)

    def request(self, message: "Record") -> int:
        """Appliance: sends a request; its id comes back with Answered.  Raises as `notify`."""
        return self.messenger.request(message, self._message_limit)

    def answer(self, id: int, message: "Record") -> None:
        """tether: answers a request.  Raises as `notify`."""
        self.messenger.send(ANSWER, id, message, self._message_limit)

    def notify(self, message: "Record") -> None:
        """tether: tells an event.

        Raises CongestedError if the peer has not taken earlier messages and UsageError if this one is too long.
        """
        self.messenger.send(EVENT, 0, message, self._message_limit)

    @property
    def pending(self) -> "dict[int, str]":
        """Appliance: requests without answer, and their types."""
        return self.messenger.pending

    def forget(self, id: int) -> None:
        """Appliance: nobody waits for this answer any more (it may still come)."""
        self.messenger.pending.pop(id, None)

    def leave(self, reason: str) -> None:
        """Tells the peer that this end goes away for good, and why; call when `settled`."""
        if self.phase == LIVE:
            self._bye = reason
            self._owe(BYE)

    # what survives this process

    def snapshot(self) -> bytes:
        """This end as it is now, for the disk; see tether.link.snapshot."""
        from tether.link import snapshot

        return snapshot.take(self)

    def saved(self, data: bytes) -> None:
        """This snapshot, and all that was read before it, is safe: the peer may forget what it covers."""
        from tether.link import snapshot

        snapshot.release(self.mux, snapshot.read(data))

    @classmethod
    def restore(cls, data: bytes, limits: Limits = PORT, *, software: str = "") -> "Endpoint":
        """An endpoint that goes on where `snapshot` was taken.  Raises ProtocolError for what is no snapshot."""
        from tether.link import snapshot

        state = snapshot.read(data)
        endpoint = cls(state.role, limits, instance=state.instance, durable=True, software=software)
        endpoint.known = state.peer
        snapshot.fill(endpoint, state)
        return endpoint

    @property
    def _message_limit(self) -> int:
        return min(self.limits.message, self._peer.message if self._peer else self.limits.message)

    # frames

    def _take_frames(self) -> None:
        while (frame := self._decoder.next()) is not None:
            self._take(frame)
        if self.phase == LIVE and self.mux.receiver(CONTROL_STREAM).buffered:
            self.messenger.take_all(self.limits.message)

    def _take(self, frame: "Frame") -> None:
        kind, flags, stream, offset, payload = frame
        live = self.phase == LIVE
        if live and kind == DATA:
            self.mux.take_data(stream, flags, offset, payload)
        elif live and kind == ACK:
            self.mux.take_ack(stream, flags, offset, payload)
        elif self.phase == DOWN:
            self.stale += 1
        elif kind == HELLO:
            self._take_hello(read_hello(payload))
        elif kind == RESUME:
            self._take_resume(read_resume(payload))
        elif kind == BYE:
            self._take_bye(payload)
        elif not live:
            self.stale += 1
        elif kind == NAK:
            self.mux.take_nak(stream, flags, offset)
        elif kind == CLOSED:
            self.mux.take_closed(stream, flags)
        else:
            raise ProtocolError(f"a frame of unknown kind {kind}")

    def _take_hello(self, hello: Hello) -> None:
        if not agree(self._mine, hello):
            self._refuse(hello)
            return
        if self.phase == LIVE and self._peer is not None and hello.connection != self._peer.connection:
            self._end_connection("the peer connected anew")  # and we have not noticed that it was away
            self.phase = GREETING
            self._mine = self._new_hello()
            self._decoder.rekey(self._mine.key)
        if self._peer is None or hello.connection != self._peer.connection:  # a repetition is not answered in kind
            self._owe(HELLO)
        self._peer = hello
        self._owe(RESUME)

    def _refuse(self, hello: Hello) -> None:
        repeated = self._peer is not None and self._peer.connection == hello.connection
        self._end_connection("the other end does not fit")
        self.phase = GREETING
        self._peer = hello
        self._bye = objection(self._mine, hello)
        if not repeated:
            self._owe(HELLO)
            self._events.append(Refused(reason=self._bye))
        self._owe(BYE)

    def _new_resume(self, peer: Hello) -> Resume:
        """Says where our streams stand; a peer that replaces a VM we knew is told nothing of its predecessor."""
        replaced = self._replaced_by(peer)
        send, receive = ((), ()) if replaced and self.role == APPLIANCE else resume.positions(self.mux)
        known = peer.instance == self.known
        return Resume(connection=self._mine.connection, echo=peer.connection, known=known, send=send, receive=receive)

    def _replaced_by(self, peer: Hello) -> bool:
        return bool(self.known) and peer.instance != self.known

    def _take_resume(self, theirs: Resume) -> None:
        peer, mine = self._peer, self._mine
        fits = peer is not None and theirs.connection == peer.connection and theirs.echo == mine.connection
        if peer is None or not fits or self.phase == LIVE:
            return  # of an earlier connection, or a repetition
        replaced = self._replaced_by(peer)
        if replaced and self.role == APPLIANCE:
            self._void()
        resumed = theirs.known and peer.instance == self.known
        self.phase = LIVE
        self.known = peer.instance
        self._events.append(
            Connected(
                instance=peer.instance, generation=agree(mine, peer), software=peer.software,
                resumed=resumed, replaced=replaced,
            )
        )  # fmt: skip
        resume.apply(self.mux, theirs, peer, self._events)
        self._poke()

    def _void(self) -> None:
        """The VM is another one: nothing of what we hold is of use any more."""
        self.mux.break_streams()
        self.mux = self._new_mux()
        self.messenger.mux = self.mux
        self.messenger.give_up()

    def _take_bye(self, payload: memoryview) -> None:
        plain = cbor.loads(payload)
        reason = plain.get("reason") if isinstance(plain, dict) else None
        if not isinstance(reason, str):
            raise ProtocolError("a bye without a reason")
        if self.phase == LIVE:
            self._end_connection(reason)
            self.phase = GREETING  # should it come back after all
            self._mine = self._new_hello()
            self._decoder.rekey(self._mine.key)
        else:
            self._events.append(Refused(reason=reason))

    # output

    def _owe(self, kind: int) -> None:
        self._owed.add(kind)
        self._poke()

    def _poke(self) -> None:
        if self.idle:
            self.idle = False
            self.on_output()


def _nobody() -> None:
    """Nobody is told of output."""
