"""Where the streams go on when a connection begins (docs/protocol.md, "Resuming").

Both ends say where each of their senders and receivers stands, then both compute the same meeting point:

    a receiver goes on at what it has, or at the first byte that the sender still keeps if that is higher (Gone);
    a sender goes on at what the receiver has, also if that is more than it remembers having sent (Overtaken).
"""

from tether.link.events import Gone, Overtaken
from tether.link.messages import CONTROL_STREAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.link.events import Event
    from tether.link.hello import Hello, Receiving, Resume, Sending
    from tether.link.mux import Mux
    from tether.link.sender import Sender

    Rows = tuple[tuple[int, ...], ...]


def positions(mux: "Mux") -> "tuple[Rows, Rows]":
    """What this end says of its senders and its receivers, as the rows of a RESUME."""
    send = tuple(
        (number, sender.base, sender.end) for number, sender in sorted(mux.senders.items()) if sender.opened
    )
    receive = []
    for number, receiver in sorted(mux.receivers.items()):
        received, released, limit, _flags = receiver.tell()
        if received or receiver.end is not None:
            receive.append((number, received, released, limit, int(receiver.end is not None)))
    return send, tuple(receive)


def apply(mux: "Mux", resume: "Resume", peer: "Hello", events: "list[Event]") -> None:
    """Brings the streams to where the peer's RESUME says that they go on."""
    theirs = {one.number: one for one in resume.senders()}
    mux.restart(peer)
    _close_unlisted(mux, theirs)
    for one in theirs.values():
        _meet_sender(mux, one, events)
    rows = {one.number: one for one in resume.receivers()}
    for number, sender in list(mux.senders.items()):
        row = rows.pop(number, None)
        credit = peer.control if number == CONTROL_STREAM else peer.window
        if row is None:
            sender.resume(sender.base, sender.base, sender.base + credit)
        else:
            _meet_receiver(sender, row, events)
        mux.after_progress(sender)
    for row in rows.values():
        if row.received and not row.end:
            sender = mux.sender(row.number, row.received)
            sender.limit = row.limit
            events.append(Overtaken(stream=row.number, count=row.received))


def _close_unlisted(mux: "Mux", listed: "dict[int, Sending]") -> None:
    """The peer has forgotten streams that it does not list: no late frame of them will come."""
    for number, receiver in list(mux.receivers.items()):
        if number not in listed and receiver.end is not None:
            mux.take_closed(number)


def _meet_sender(mux: "Mux", one: "Sending", events: "list[Event]") -> None:
    receiver = mux.opened(one.number)
    if one.base > receiver.expected and receiver.end is None:
        events.append(Gone(stream=one.number, count=receiver.jump(one.base)))


def _meet_receiver(sender: "Sender", row: "Receiving", events: "list[Event]") -> None:
    if row.received > sender.known:
        events.append(Overtaken(stream=sender.number, count=row.received - sender.known))
        sender.shift(row.received)
        sender.limit = row.limit
    else:
        sender.resume(row.received, row.released, row.limit)
    if row.end and not sender.finished:  # finished after the snapshot that this end was restored from
        sender.finish()
