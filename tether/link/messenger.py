"""Control messages over the control stream: requests, answers, events.

A message leaves the receiving window only when it is whole, so both ends always resume at the beginning of one, and an
appliance that takes over without memory can read on.
"""

from tether.link.control import ANSWER, EVENT, LENGTH_SIZE, REQUEST, Unreadable, length_of, read_message, write_message
from tether.link.errors import CongestedError, ProtocolError, UsageError
from tether.link.events import Answered, Notified, Requested
from tether.link.hello import APPLIANCE, TETHER
from tether.link.messages import ANSWERS, CONTROL_STREAM, Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.link.events import Event
    from tether.link.mux import Mux
    from tether.link.record import Record

# Requests wait while the answers to earlier ones fill the ring: a peer that asks and never reads costs no memory.
_ANSWER_RESERVE = 64 * 1024
_ID_SPAN = 1 << 32  # ids are instance * _ID_SPAN + count: no two appliances of one VM ever use the same


class Messenger:
    """The messages of one endpoint.  `pending` are the requests without answer: id -> type."""

    def __init__(self, role: str, instance: bytes, mux: "Mux", events: "list[Event]") -> None:
        self.role, self.mux = role, mux
        self.pending: dict[int, str] = {}
        self.last_id = int.from_bytes(instance[:3], "big") * _ID_SPAN
        self._events = events
        self.told: Callable[[int, int, Record], None] | None = None  # hears of what is sent: kind, id, message

    def request(self, message: "Record", limit: int) -> int:
        """Sends a request and returns its id.  `limit`: of the message's length.  Raises as `send`."""
        id = self.last_id + 1
        self.send(REQUEST, id, message, limit)
        self.last_id = id
        self.pending[id] = type(message).__name__
        return id

    def send(self, kind: int, id: int, message: "Record", limit: int) -> None:
        """Queues a message.

        Raises CongestedError if the peer has not taken earlier messages and UsageError if this one is too long.
        """
        data = write_message(kind, id, message)
        if len(data) - LENGTH_SIZE > limit:
            raise UsageError(f"a {type(message).__name__} of {len(data)} bytes, the link takes {limit}")
        sender = self.mux.sender(CONTROL_STREAM)
        if sender.room < len(data):
            raise CongestedError(f"{type(message).__name__}: the peer has not taken {sender.end - sender.base} bytes")
        sender.write(data)
        self.mux.outbox.wrote(sender)
        if self.told is not None:
            self.told(kind, id, message)

    def take_all(self, limit: int) -> None:
        """Turns what has arrived into events.  Raises ProtocolError."""
        receiver, sender = self.mux.receiver(CONTROL_STREAM), self.mux.sender(CONTROL_STREAM)
        reserve = 0 if self.role == APPLIANCE else min(_ANSWER_RESERVE, sender.capacity // 2)
        while receiver.buffered >= LENGTH_SIZE and sender.room >= reserve:
            length = length_of(receiver.peek(LENGTH_SIZE), limit)
            if receiver.buffered < LENGTH_SIZE + length:
                return
            body = receiver.take(LENGTH_SIZE + length)[LENGTH_SIZE:]
            self.mux.consumed(receiver)
            self._take(*read_message(body))

    def give_up(self) -> None:
        """The VM that was asked is not there any more: answers for it."""
        text = "the VM was replaced before it answered"
        for id, name in self.pending.items():
            fault = Fault(step=name, object="link", text=text, hint="ask the new VM", maybe_done=True)
            self._events.append(Answered(id=id, message=fault))
        self.pending.clear()

    def _take(self, kind: int, id: int, message: "Record") -> None:
        if kind == REQUEST and self.role == TETHER:
            if isinstance(message, Unreadable):
                fault = Fault(step=message.type, object="request", text=message.why, errno="EPROTO")
                self.send(ANSWER, id, fault, _ANSWER_RESERVE)
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
        expected = answer_to(asked or "")
        if isinstance(message, Fault) or (expected is not None and isinstance(message, expected)):
            return message
        if asked is None and not isinstance(message, Unreadable):
            return message  # to a request of a predecessor, or one that was forgotten
        why = message.why if isinstance(message, Unreadable) else f"answered with {type(message).__name__}"
        return Fault(step=asked or "answer", object="link", text=why, errno="EPROTO", maybe_done=True)


def answer_to(request: str) -> "type[Record] | None":
    """The record that answers a request of this type, unless a Fault does."""
    if request in ANSWERS:
        return ANSWERS[request]
    from tether.link.late_messages import LATE_ANSWERS

    return LATE_ANSWERS.get(request)
