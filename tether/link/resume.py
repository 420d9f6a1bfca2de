"""Where the streams go on when a connection begins (docs/protocol.md, "Resuming").

Both ends say where each of their senders and receivers stands, then both compute the same meeting point:

    a receiver goes on at what it has, or at the first byte that the sender still keeps if that is higher (Gone);
    a sender goes on at what the receiver has, also if that is more than it remembers having sent (Overtaken).
"""

from tether.link.events import Gone, Overtaken

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.link.events import Event
    from tether.link.hello import Hello, Receiving, Resume, Sending
    from tether.link.mux import Mux
    from tether.link.sender import Sender

    Rows = tuple[tuple[int, ...], ...]


def positions(mux: "Mux") -> "tuple[Rows, Rows]":
    """What this end says of its senders and its receivers, as the rows of a RESUME."""
    send = tuple((n, one.life, one.base, one.end) for n, one in sorted(mux.senders.items()) if one.opened)
    receive = []
    for number, receiver in sorted(mux.receivers.items()):
        (received, released, limit), _flags = receiver.tell()
        if received or receiver.end is not None:
            receive.append((number, receiver.life, received, released, limit, int(receiver.end is not None)))
    return send, tuple(receive)


def apply(mux: "Mux", resume: "Resume", peer: "Hello", events: "list[Event]") -> None:
    """Brings the streams to where the peer's RESUME says that they go on."""
    mux.restart(peer)
    for one in resume.senders():
        _meet_sender(mux, one, events)
    rows = {one.number: one for one in resume.receivers()}
    for sender in list(mux.senders.values()):
        _meet_receiver(mux, sender, rows, events)
    for row in rows.values():
        if row.end:
            mux.part(row.number, row.life)
        elif row.received:
            sender = mux.sender(row.number, row.received, row.life)
            sender.limit = row.limit
            events.append(Overtaken(stream=row.number, count=row.received))


def _meet_sender(mux: "Mux", one: "Sending", events: "list[Event]") -> None:
    receiver = mux.opened(one.number, one.life)
    if one.base > receiver.expected and receiver.end is None and receiver.life == one.life:
        events.append(Gone(stream=one.number, count=receiver.jump(one.base)))


def _meet_receiver(mux: "Mux", sender: "Sender", rows: "dict[int, Receiving]", events: "list[Event]") -> None:
    """Brings a sender to where its row says; rows that nobody takes are left for new senders."""
    row, listed = rows.get(sender.number), sender.opened
    if row is not None and row.life != sender.life and (listed or sender.restored):
        mux.drop(sender)  # restored from a snapshot that is a life old
        return
    if row is not None and row.end and not listed and not sender.restored:
        row = None  # of a former life
    else:
        rows.pop(sender.number, None)
    if row is None:
        credit = mux.peer_window(sender.number)
        sender.resume(sender.base, sender.base, sender.base + credit)
    elif row.received > sender.known:
        events.append(Overtaken(stream=sender.number, count=row.received - sender.known))
        sender.life = row.life
        sender.shift(row.received)
        sender.limit = row.limit
    else:
        sender.life = row.life
        sender.resume(row.received, row.released, row.limit)
    if row is not None and row.end:
        sender.finish()
    mux.after_progress(sender)
