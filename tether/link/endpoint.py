"""One end of the link: a state machine without file descriptors, threads or clocks.

Bytes from the transport go in (`receive`, or `space` and `filled` without a copy), bytes for it come out (`transmit`,
or `gather` as pieces for writev), and `events` says what happened in between.  `tether.link.wire` connects it to a
file descriptor.  See docs/protocol.md for the wire and docs/link.md for what its user can rely on.

A connection goes through three phases: DOWN, GREETING (both say hello, then where their streams stand), LIVE.
"""

import os

from tether.link import cbor, resume
from tether.link.control import ANSWER, EVENT, LENGTH_SIZE, REQUEST, Unreadable, length_of, read_message, write_message
from tether.link.errors import CongestedError, ProtocolError, UsageError
from tether.link.events import Answered, Connected, Disconnected, Notified, Refused, Requested
from tether.link.frame import ACK, BYE, CLOSED, DATA, HELLO, NAK, RESUME, Decoder, build
from tether.link.hello import (
    APPLIANCE,
    INSTANCE_SIZE,
    NONCE_SIZE,
    TETHER,
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
from tether.link.messages import ANSWERS, CONTROL_STREAM, Fault
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

# Requests wait while the answers to earlier ones fill the ring: a peer that asks and never reads costs no memory.
_ANSWER_RESERVE = 64 * 1024
_ID_SPAN = 1 << 32  # ids are instance * _ID_SPAN + count: no two appliances of one VM ever use the same


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
        self.on_output: Callable[[], None] = _nobody  # called when `gather` may have something after it had nothing
        self.stale = 0  # frames ignored because they came before the connection was live
        self._random = random
        self._events: list[Event] = []
        self._decoder = Decoder(limits.payload)
        self._mine = self._new_hello()
        self._peer: Hello | None = None  # of this connection
        self._known = b""  # instance of the last peer that was live
        self._owed: list[int] = []  # opening frames to send
        self._bye = ""
        self._idle = True  # `gather` had nothing, or was not called yet
        self.pending: dict[int, str] = {}  # requests without answer: id -> type
        self._last_id = int.from_bytes(self.instance[:3], "big") * _ID_SPAN
        self.mux = self._new_mux()

    def _new_mux(self) -> Mux:
        mux = Mux(self.limits, self.durable, self._events, self._poke)
        mux.sender(CONTROL_STREAM)
        mux.receiver(CONTROL_STREAM)
        return mux

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
        self._peer = self.mux.peer = None
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
        parts: list[Part] = []
        peer = self._peer
        for kind in self._owed:
            if kind == HELLO:
                parts += build(HELLO, 0, parts=[pack(self._mine)])
            elif kind == BYE and peer is not None:
                parts += build(BYE, peer.key, parts=[cbor.dumps({"reason": self._bye})])
            elif kind == RESUME and peer is not None:
                parts += build(RESUME, 0, parts=[pack(self._new_resume(peer))])
        self._owed.clear()
        if self.phase == LIVE:
            parts += self.mux.gather()
        self._idle = not parts
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
        return self.mux.owes

    def acknowledge(self) -> None:
        """Lets the acknowledgements that were put off go out."""
        self.mux.hurry()

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
        id = self._last_id + 1
        self._send(REQUEST, id, message)
        self._last_id = id
        self.pending[id] = type(message).__name__
        return id

    def answer(self, id: int, message: "Record") -> None:
        """tether: answers a request.  Raises as `notify`."""
        self._send(ANSWER, id, message)

    def notify(self, message: "Record") -> None:
        """tether: tells an event.

        Raises CongestedError if the peer has not taken earlier messages and UsageError if this one is too long.
        """
        self._send(EVENT, 0, message)

    def forget(self, id: int) -> None:
        """Appliance: nobody waits for this answer any more (it may still come)."""
        self.pending.pop(id, None)

    def leave(self, reason: str) -> None:
        """Tells the peer that this end goes away for good, and why; call when `settled`."""
        if self.phase == LIVE:
            self._bye = reason
            self._owe(BYE)

    def _send(self, kind: int, id: int, message: "Record") -> None:
        data = write_message(kind, id, message)
        limit = min(self.limits.message, self._peer.message if self._peer else self.limits.message)
        if len(data) - LENGTH_SIZE > limit:
            raise UsageError(f"a {type(message).__name__} of {len(data)} bytes, the link takes {limit}")
        sender = self.mux.sender(CONTROL_STREAM)
        if sender.room < len(data):
            raise CongestedError(f"{type(message).__name__}: the peer has not taken {sender.end - sender.base} bytes")
        sender.write(data)
        self.mux.wrote(sender)

    # frames

    def _take_frames(self) -> None:
        while True:
            frame = self._decoder.next()
            if frame is None:
                break
            self._take(frame)
        self._take_messages()

    def _take(self, frame: "Frame") -> None:
        kind, flags, stream, offset, payload = frame
        if self.phase == DOWN:
            self.stale += 1
        elif kind == HELLO:
            self._take_hello(read_hello(payload))
        elif kind == RESUME:
            self._take_resume(read_resume(payload))
        elif kind == BYE:
            self._take_bye(payload)
        elif self.phase != LIVE:
            self.stale += 1
        elif kind == DATA:
            self.mux.take_data(stream, flags, offset, payload)
        elif kind == ACK:
            self.mux.take_ack(stream, flags, offset, payload)
        elif kind == NAK:
            self.mux.take_nak(stream, offset)
        elif kind == CLOSED:
            self.mux.take_closed(stream)
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
        if self.phase != LIVE:
            self.mux.receiver(CONTROL_STREAM).rewind()  # the sender begins its message again
        replaced = self._replaced_by(peer)
        send, receive = ((), ()) if replaced and self.role == APPLIANCE else resume.positions(self.mux)
        return Resume(
            connection=self._mine.connection,
            echo=peer.connection,
            known=peer.instance == self._known,
            send=send,
            receive=receive,
        )

    def _replaced_by(self, peer: Hello) -> bool:
        return bool(self._known) and peer.instance != self._known

    def _take_resume(self, theirs: Resume) -> None:
        peer, mine = self._peer, self._mine
        fits = peer is not None and theirs.connection == peer.connection and theirs.echo == mine.connection
        if peer is None or not fits or self.phase == LIVE:
            return  # of an earlier connection, or a repetition
        replaced = self._replaced_by(peer)
        if replaced and self.role == APPLIANCE:
            self._void()
        resumed = theirs.known and peer.instance == self._known
        self.phase = LIVE
        self._known = peer.instance
        self._events.append(
            Connected(
                instance=peer.instance,
                generation=agree(mine, peer),
                software=peer.software,
                resumed=resumed,
                replaced=replaced,
            )
        )
        resume.apply(self.mux, theirs, peer, self._events)
        self._poke()

    def _void(self) -> None:
        """The VM is another one: nothing of what we hold is of use any more."""
        self.mux.break_streams()
        self.mux = self._new_mux()
        for id, name in self.pending.items():
            text = "the VM was replaced before it answered"
            fault = Fault(step=name, object="link", text=text, hint="ask the new VM", maybe_done=True)
            self._events.append(Answered(id=id, message=fault))
        self.pending.clear()

    def _take_bye(self, payload: memoryview) -> None:
        plain = cbor.loads(payload)
        reason = plain.get("reason") if isinstance(plain, dict) else None
        if not isinstance(reason, str):
            raise ProtocolError("a bye without a reason")
        if self.phase == LIVE:
            self._end_connection(reason)
            self.phase = DOWN
        else:
            self._events.append(Refused(reason=reason))

    # control messages

    def _take_messages(self) -> None:
        receiver = self.mux.receiver(CONTROL_STREAM)
        sender = self.mux.sender(CONTROL_STREAM)
        reserve = 0 if self.role == APPLIANCE else min(_ANSWER_RESERVE, self.limits.control_window // 2)
        while sender.room >= reserve:
            if receiver.buffered < LENGTH_SIZE:
                return
            length = length_of(receiver.peek(LENGTH_SIZE), self.limits.message)
            if receiver.buffered < LENGTH_SIZE + length:
                return
            receiver.take(LENGTH_SIZE)
            body = receiver.take(length)
            self.mux.consumed(receiver)
            self._take_message(*read_message(body))

    def _take_message(self, kind: int, id: int, message: "Record") -> None:
        if kind == REQUEST and self.role == TETHER:
            if isinstance(message, Unreadable):
                fault = Fault(step=message.type, object="request", text=message.why, errno="EPROTO")
                self.answer(id, fault)
            else:
                self._events.append(Requested(id=id, message=message))
        elif kind == ANSWER and self.role == APPLIANCE:
            self._events.append(Answered(id=id, message=self._checked(id, message)))
        elif kind == EVENT and self.role == APPLIANCE:
            self._events.append(Notified(message=message))
        else:
            raise ProtocolError(f"a message of kind {kind} in the wrong direction")

    def _checked(self, id: int, message: "Record") -> "Record":
        """The answer, or a Fault if it is not of the type that its request calls for."""
        asked = self.pending.pop(id, None)
        expected = ANSWERS.get(asked or "")
        if isinstance(message, Fault) or (expected is not None and isinstance(message, expected)):
            return message
        if asked is None and not isinstance(message, Unreadable):
            return message
        why = message.why if isinstance(message, Unreadable) else f"answered with {type(message).__name__}"
        return Fault(step=asked or "answer", object="link", text=why, errno="EPROTO", maybe_done=True)

    # output

    def _owe(self, kind: int) -> None:
        if kind not in self._owed:
            self._owed.append(kind)
        self._owed.sort(key=(HELLO, RESUME, BYE).index)
        self._poke()

    def _poke(self) -> None:
        if self._idle:
            self._idle = False
            self.on_output()


def _nobody() -> None:
    """Nobody waits for output: the owner calls `gather` on its own."""
