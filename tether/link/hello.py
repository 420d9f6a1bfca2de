"""The opening of a connection: who is there, what it speaks, and where its streams stand (docs/protocol.md, "Opening").

Plans only: payloads to records and back, checked; whether two ends fit together.
"""

from tether.link import cbor
from tether.link.errors import ProtocolError, SchemaError
from tether.link.frame import GENERATION, LIVES, OLDEST_GENERATION
from tether.link.limits import LEAST_PAYLOAD, MOST_PAYLOAD, MOST_STREAMS, Limits
from tether.link.record import Record, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from typing_extensions import Buffer

    R = TypeVar("R", bound=Record)

TETHER, APPLIANCE = "tether", "appliance"
_OTHER = {TETHER: APPLIANCE, APPLIANCE: TETHER}

NONCE_SIZE = 8  # of a connection; its first four bytes are the key of the frames that come back
INSTANCE_SIZE = 16
_MOST_OFFSET = 1 << 62  # at 1 GB/s it takes 146 years to get here
_MOST_WINDOW = 1 << 30


class Hello(Record):
    """Payload of HELLO.

    `durable`: what this end has acknowledged as released is safe on its disk; before that it may ask for it again.
    """

    generations: tuple[int, ...]  # oldest and newest
    role: str
    instance: bytes
    connection: bytes
    payload: int
    window: int
    control: int
    streams: int
    message: int
    flight: int = 0
    ends_suffice: bool = False
    durable: bool = False
    software: str = ""

    @property
    def key(self) -> int:
        """What the header CRC of frames to this end starts from."""
        return int.from_bytes(self.connection[:4], "big")


class Sending(Record):
    """Where a sender stands: number and life, the first byte it still has, and where it stands in writing."""

    number: int
    life: int
    base: int
    end: int


class Receiving(Record):
    """Where a receiver stands; `end` is true once the end of the stream has arrived."""

    number: int
    life: int
    received: int
    released: int
    limit: int
    end: bool = False


class Resume(Record):
    """Payload of RESUME: `connection` and `echo` are the nonces of the receiver and the sender of this frame.

    `known`: this end knows the peer's instance from before.
    """

    connection: bytes
    echo: bytes
    known: bool
    send: tuple[tuple[int, ...], ...] = ()
    receive: tuple[tuple[int, ...], ...] = ()

    def senders(self) -> tuple[Sending, ...]:
        """The peer's senders."""
        return tuple(Sending(number=number, life=life, base=base, end=end) for number, life, base, end in self.send)

    def receivers(self) -> tuple[Receiving, ...]:
        """The peer's receivers."""
        return tuple(
            Receiving(number=number, life=life, received=received, released=released, limit=limit, end=bool(end))
            for number, life, received, released, limit, end in self.receive
        )


def hello_of(
    role: str, limits: Limits, *, instance: bytes, connection: bytes, durable: bool, software: str
) -> Hello:
    """What this end says of itself."""
    return Hello(
        generations=(OLDEST_GENERATION, GENERATION),
        role=role,
        instance=instance,
        connection=connection,
        payload=limits.payload,
        window=limits.window,
        control=limits.control_window,
        streams=limits.streams,
        message=limits.message,
        flight=limits.flight,
        ends_suffice=limits.ends_suffice,
        durable=durable,
        software=software,
    )


def pack(record: Record) -> bytes:
    """The payload of an opening frame."""
    return cbor.dumps(encode(record))


def read_hello(payload: "Buffer") -> Hello:
    """Checks and decodes a HELLO.  Keys that we do not know are passed over: a newer peer may say more of itself."""
    plain = cbor.loads(payload)
    if not isinstance(plain, dict):
        raise ProtocolError("a hello that is not a map")
    hello = _decoded(Hello, {key: value for key, value in plain.items() if key in Hello._fields})
    if len(hello.generations) != 2 or not 0 <= hello.generations[0] <= hello.generations[1]:
        raise ProtocolError(f"hello: generations {hello.generations} are not an oldest and a newest one")
    if hello.role not in _OTHER or len(hello.instance) != INSTANCE_SIZE or len(hello.connection) != NONCE_SIZE:
        raise ProtocolError("hello: role, instance or connection is not of the protocol")
    _between("payload", hello.payload, LEAST_PAYLOAD, MOST_PAYLOAD)
    _between("window", hello.window, LEAST_PAYLOAD, _MOST_WINDOW)
    _between("control", hello.control, LEAST_PAYLOAD, _MOST_WINDOW)
    _between("message", hello.message, LEAST_PAYLOAD, _MOST_WINDOW)
    _between("streams", hello.streams, 1, MOST_STREAMS)
    _between("flight", hello.flight, 0, _MOST_WINDOW)
    return hello


def read_resume(payload: "Buffer") -> Resume:
    """Checks and decodes a RESUME."""
    resume = _decoded(Resume, cbor.loads(payload))
    for name, rows, width in (("send", resume.send, 4), ("receive", resume.receive, 6)):
        if len(rows) > MOST_STREAMS + 1:  # 1: the control stream
            raise ProtocolError(f"resume: {len(rows)} streams to {name}, {MOST_STREAMS} are the limit")
        before = -1
        for row in rows:
            fits = len(row) == width and before < row[0] < 1 << 32 and 0 <= row[1] < LIVES
            if not fits or not all(0 <= offset < _MOST_OFFSET for offset in row[2:]):
                raise ProtocolError(f"resume: a row of {name!r} is not of the protocol")
            before = row[0]
    if any(one.base > one.end for one in resume.senders()):
        raise ProtocolError("resume: a sender that ends before it begins")
    if any(not one.released <= one.received <= one.limit for one in resume.receivers()):
        raise ProtocolError("resume: a receiver whose positions contradict one another")
    return resume


def agree(mine: Hello, theirs: Hello) -> int:
    """The generation that both speak; 0 if they cannot work together, see `objection`."""
    generation = min(mine.generations[1], theirs.generations[1])
    fits = generation >= max(mine.generations[0], theirs.generations[0]) and theirs.role == _OTHER[mine.role]
    return generation if fits else 0


def objection(mine: Hello, theirs: Hello) -> str:
    """Why the two ends cannot work together, as a sentence for people on either side."""
    if theirs.role != _OTHER[mine.role]:
        return f"Both ends of the link say they are the {mine.role}: one is connected to the wrong port."
    old, new = (mine, theirs) if mine.generations[1] < theirs.generations[1] else (theirs, mine)
    return (
        f"The {old.role} {old.software or '(unnamed)'} speaks link generations {_span(old)}, the {new.role} "
        f"{new.software or '(unnamed)'} {_span(new)}: they have none in common. Update the {old.role}."
    )


def _span(hello: Hello) -> str:
    oldest, newest = hello.generations
    return str(newest) if oldest == newest else f"{oldest} to {newest}"


def _decoded(cls: "type[R]", plain: object) -> "R":
    try:
        return decode(cls, plain)
    except SchemaError as error:
        raise ProtocolError(f"{cls.__name__.lower()}: {error}") from None


def _between(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ProtocolError(f"hello: {name} {value} is not between {least} and {most}")
