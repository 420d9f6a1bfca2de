"""Control messages on the wire: a length and a CBOR array of four (docs/protocol.md, "Control messages").

Plans only: records to bytes and back.  A message that this end does not understand is an `Unreadable`, not an
exception: one side may be newer, and a request deserves an answer that says so.
"""

from struct import Struct

from tether.link import cbor
from tether.link.errors import CborError, ProtocolError, SchemaError
from tether.link.messages import ANSWERS, EVENTS, REQUESTS, Fault
from tether.link.record import Record, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REQUEST, ANSWER, EVENT = 0, 1, 2
_KINDS = ("request", "answer", "event")

_LENGTH = Struct(">I")
LENGTH_SIZE = _LENGTH.size
_MOST_ID = (1 << 63) - 1

_ANSWERS: "dict[str, type[Record]]" = {cls.__name__: cls for cls in ANSWERS.values()} | {"Fault": Fault}
_TYPES = (REQUESTS, _ANSWERS, EVENTS)


class Unreadable(Record):
    """A message whose type or body this end does not understand."""

    type: str
    why: str


def write_message(kind: int, id: int, message: Record) -> bytes:
    """One message with its length in front."""
    body = cbor.dumps([kind, id, type(message).__name__, encode(message)])
    return _LENGTH.pack(len(body)) + body


def length_of(prefix: bytes, limit: int) -> int:
    """The length that a message's first four bytes announce.  Raises ProtocolError beyond `limit`."""
    length = int(_LENGTH.unpack(prefix)[0])
    if length > limit:
        raise ProtocolError(f"a control message of {length} bytes, {limit} are the limit")
    return length


def read_message(body: bytes) -> tuple[int, int, Record]:
    """Kind, id and message (or Unreadable).  Raises ProtocolError for what is no message at all."""
    try:
        envelope = cbor.loads(body)
    except CborError as error:
        raise ProtocolError(f"a control message that is not CBOR: {error}") from None
    if not isinstance(envelope, list) or len(envelope) != 4:
        raise ProtocolError("a control message is an array of kind, id, type and body")
    kind, id, name, plain = envelope
    if type(kind) is not int or not 0 <= kind < len(_TYPES) or type(name) is not str:
        raise ProtocolError("a control message of no known kind")
    if type(id) is not int or not 0 <= id <= _MOST_ID:
        raise ProtocolError("a control message without a proper id")
    return kind, id, _message(kind, name, plain)


def _message(kind: int, name: str, plain: "Any") -> Record:
    cls = _TYPES[kind].get(name) or _late_type(kind, name)
    if cls is None:
        return Unreadable(type=name, why=f"unknown {_KINDS[kind]}")
    try:
        return decode(cls, plain)
    except SchemaError as error:
        return Unreadable(type=name, why=str(error))


def _late_type(kind: int, name: str) -> "type[Record] | None":
    from tether.link.late_messages import LATE_ANSWERS, LATE_EVENTS, LATE_REQUESTS

    if kind == ANSWER:
        return next((cls for cls in LATE_ANSWERS.values() if cls.__name__ == name), None)
    return (LATE_REQUESTS if kind == REQUEST else LATE_EVENTS).get(name)
