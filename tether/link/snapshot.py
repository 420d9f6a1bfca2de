"""What of an appliance's endpoint must survive the appliance (docs/link.md, "When the appliance goes away").

An endpoint made with `durable=True` acknowledges as *released* only what `Endpoint.saved` has covered; until then
tether keeps it in its ring.  So the appliance repeats, as often as it likes:

    1. take events, read streams, and put what they said where it survives (a log file, a database)
    2. snapshot = endpoint.snapshot(); write it to disk, after or together with 1
    3. endpoint.saved(snapshot)

Killed at any moment and restored from its last snapshot on disk, the appliance gets every byte and every message that
came after that snapshot, once more if it had been read but not saved, and nothing twice that the snapshot covers.
What it had *written* but not snapshotted is not remembered: if the peer has got some of it, Overtaken says how much.
"""

from tether.link import cbor
from tether.link.errors import ProtocolError, SchemaError
from tether.link.frame import LIVES
from tether.link.record import Record, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.link.endpoint import Endpoint
    from tether.link.mux import Mux

VERSION = 1  # of the format on disk
_ID_GAP = 1 << 16  # ids that requests made after the snapshot may have used
_LIFE_GAP = LIVES // 4  # lives that streams begun after the snapshot may have used


class SentPart(Record):
    """A sender: the bytes from `base` on, each of which the peer may have got after the snapshot was taken."""

    number: int
    life: int
    base: int
    data: bytes
    opened: bool
    finished: bool = False
    aborted: bool = False


class ReceivedPart(Record):
    """A receiver: everything below `consumed` was read."""

    number: int
    life: int
    consumed: int
    end: int | None = None
    stopped: bool = False


class Asked(Record):
    """A request without answer."""

    id: int
    type: str


class Parted(Record):
    """A sender that is done, and whose peer does not know yet that it can forget that."""

    number: int
    life: int


class Snapshot(Record):
    """All of it."""

    version: int
    role: str
    instance: bytes
    peer: bytes
    last_id: int
    pending: tuple[Asked, ...]
    lives: int
    parted: tuple[Parted, ...]
    send: tuple[SentPart, ...]
    receive: tuple[ReceivedPart, ...]


def take(endpoint: "Endpoint") -> bytes:
    """The endpoint as it is now, for the disk.  As long as what its rings hold."""
    mux, messenger = endpoint.mux, endpoint.messenger
    snapshot = Snapshot(
        version=VERSION,
        role=endpoint.role,
        instance=endpoint.instance,
        peer=endpoint.known,
        last_id=messenger.last_id,
        pending=tuple(Asked(id=id, type=name) for id, name in messenger.pending.items()),
        lives=mux.lives,
        parted=tuple(Parted(number=number, life=life) for number, life in mux.parted.items()),
        send=tuple(
            SentPart(
                number=one.number,
                life=one.life,
                base=one.base,
                data=one.content(),
                opened=one.opened,
                finished=one.finished,
                aborted=one.aborted,
            )
            for one in mux.senders.values()
        ),
        receive=tuple(
            ReceivedPart(
                number=one.number,
                life=one.life,
                consumed=one.consumed,
                end=one.end if one.ended else None,
                stopped=one.stopped,
            )
            for one in mux.receivers.values()
        ),
    )
    return cbor.dumps(encode(snapshot))


def read(data: bytes) -> Snapshot:
    """Decodes a snapshot.  Raises ProtocolError for one that this version did not write."""
    try:
        snapshot = decode(Snapshot, cbor.loads(data))
    except SchemaError as error:
        raise ProtocolError(f"snapshot: {error}") from None
    if snapshot.version != VERSION:
        raise ProtocolError(f"snapshot of version {snapshot.version}, this is {VERSION}")
    return snapshot


def release(mux: "Mux", snapshot: Snapshot) -> None:
    """What the snapshot covers need not be kept by the peer any more."""
    for part in snapshot.receive:
        receiver = mux.receivers.get(part.number)
        if receiver is not None and receiver.life == part.life:
            mux.release(receiver, part.consumed, part.end is not None)
    for one in snapshot.parted:
        mux.certain(one.number, one.life)


def fill(endpoint: "Endpoint", snapshot: Snapshot) -> None:
    """Puts a new endpoint where the snapshot was taken."""
    mux, messenger = endpoint.mux, endpoint.messenger
    messenger.last_id = snapshot.last_id + _ID_GAP
    messenger.pending.update((one.id, one.type) for one in snapshot.pending)
    mux.lives = (snapshot.lives + _LIFE_GAP) % LIVES
    for sent in snapshot.send:
        sender = mux.sender(sent.number, sent.base, sent.life)
        sender.restore(sent.base, sent.data, sent.opened)
        if sent.aborted:
            sender.abort()
        elif sent.finished:
            sender.finish()
    for part in snapshot.receive:
        mux.receiver(part.number).restore(part.consumed, part.life, end=part.end, stopped=part.stopped)
