"""The vsock device: takes packets from one ring, puts packets into the other, and keeps the connections in between.

The guest may connect to one port, from a privileged port of its own, and have one connection at a time: so no process
of the container can play the agent, or push it aside.  Everything is bounded: packets of one turn, connections, replies
that wait for the guest's buffers (while too many wait nothing more is taken from it).  What the guest does wrong with a
packet ends that connection; what it does wrong with its rings ends the device (VsockError).
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from tether.link.reactor import HANGUP, READ, Reactor, Watch
from tether.link.transport_vsock import LAST_PRIVILEGED_PORT
from vch.vsock import packet
from vch.vsock.errors import VsockError
from vch.vsock.packet import HEADER_BYTES, Header, Op
from vch.vsock.stream import BUFFER, State, Stream
from vch.vsock.vring import Chain, Vring

HOST_CID, GUEST_CID = 2, 3  # VMADDR_CID_HOST, and the first that is free: nobody else is in this small world
TO_GUEST, FROM_GUEST, EVENTS = 0, 1, 2  # the rings (virtio 1.2, 5.10.2); QEMU serves the third itself
TURN = 64  # packets that are handled before others get their turn
MOST_REPLIES = 64
MOST_STREAMS = 8  # one that is open, others that are on their way out


class Reply(NamedTuple):
    """A packet for the guest, but for its data."""

    guest_port: int
    host_port: int
    op: Op
    flags: int = 0
    stream: Stream | None = None


class Device:
    """See the module.  `on_connection` gets the host's end of each new connection, and owns it."""

    def __init__(self, reactor: Reactor, port: int, on_connection: Callable[[socket.socket], None]) -> None:
        self._reactor, self._port, self._on_connection = reactor, port, on_connection
        self._rings: dict[int, Vring] = {}
        self._call: dict[int, Callable[[], None]] = {}
        self._streams: dict[int, Stream] = {}  # by the guest's port
        self._watches: dict[int, Watch] = {}
        self._replies: deque[Reply] = deque()
        self._on_idle: Callable[[], None] | None = None

    # from QEMU's side

    def start_ring(self, index: int, ring: Vring, call: Callable[[], None]) -> None:
        """The ring may be used from now on; `call` interrupts the guest."""
        self._rings[index], self._call[index] = ring, call
        self._reactor.soon(self.kicked)

    def stop_ring(self, index: int) -> Vring | None:
        """The ring may not be used any more.  What the guest had put there by now is still taken."""
        ring = self._rings.get(index)
        if ring is not None and index == FROM_GUEST:
            self._take_packets(ring.size)
        return self._rings.pop(index, None)

    def kicked(self) -> None:
        """The guest has put something into a ring: packets, or buffers for some."""
        more = self._take_packets(TURN)
        self._give_packets()
        if more and len(self._replies) < MOST_REPLIES:
            self._reactor.soon(self.kicked)

    def finish(self, on_idle: Callable[[], None]) -> None:
        """The guest is no more.  What it has sent is passed on; then `on_idle` is called."""
        for index in list(self._rings):
            self.stop_ring(index)
        self._on_idle = on_idle
        for stream in list(self._streams.values()):
            if stream.state is State.OPEN:
                stream.state = State.FINISHING
            self._after(stream)
        self._look_idle()

    def close(self) -> None:
        """Ends every connection."""
        self._rings.clear()
        for stream in list(self._streams.values()):
            self._drop(stream)

    # packets from the guest

    def _take_packets(self, limit: int) -> bool:
        """Handles at most so many; whether there may be more."""
        ring = self._rings.get(FROM_GUEST)
        if ring is None:
            return False
        taken = 0
        while taken < limit and len(self._replies) < MOST_REPLIES:
            chain = ring.pop()
            if chain is None:
                break
            self._take(chain)
            ring.push(chain, 0)
            taken += 1
        if taken:
            self._call[FROM_GUEST]()
        return taken == limit or len(self._replies) >= MOST_REPLIES

    def _take(self, chain: Chain) -> None:
        header, data = packet.take_header(chain.readable)
        if (header.from_cid, header.to_cid) != (GUEST_CID, HOST_CID):
            return  # not from here, not to here: there is nobody to answer
        stream = self._streams.get(header.from_port) if header.to_port == self._port else None
        if header.kind != packet.STREAM:
            self._refuse(header)
        elif stream is not None:
            stream.hear(header)
            self._take_for(stream, header, data)
        elif header.op == Op.REQUEST and header.to_port == self._port:
            self._accept(header)
        elif header.op != Op.RST:
            self._refuse(header)

    def _take_for(self, stream: Stream, header: Header, data: list[memoryview]) -> None:
        if header.op == Op.RST:
            stream.state = State.CLOSING if stream.state is State.CLOSING else State.FINISHING
            self._after(stream, reset=True)
        elif header.op == Op.RW and stream.state is State.OPEN:
            if stream.receive(data):
                self._after(stream)
            else:
                self._break(stream, header)
        elif header.op == Op.SHUTDOWN and stream.state is State.CLOSING:
            self._break(stream, header)  # both ends have gone at once
        elif header.op == Op.SHUTDOWN:
            if header.flags & packet.NO_MORE_SENT:  # the link never closes half of a connection
                stream.state = State.FINISHING
            self._after(stream)
        elif header.op == Op.CREDIT_REQUEST:
            self._owe_credit(stream)
        elif header.op != Op.CREDIT_UPDATE and stream.state is State.OPEN:
            self._break(stream, header)

    def _accept(self, header: Header) -> None:
        if header.from_port > LAST_PRIVILEGED_PORT:
            self._refuse(header)
            return
        leaving = [stream for stream in self._streams.values() if stream.state is not State.OPEN]
        if len(leaving) < len(self._streams):  # one is open
            self._refuse(header)
            return
        if len(leaving) >= MOST_STREAMS:
            self._drop(leaving[0])
        near, far = socket.socketpair()
        stream = Stream(header.from_port, near)
        stream.hear(header)
        self._streams[stream.guest_port] = stream
        self._watches[stream.guest_port] = self._reactor.watch(near.fileno(), lambda ready: self._ready(stream, ready))
        self._replies.append(Reply(stream.guest_port, self._port, Op.RESPONSE, 0, stream))
        self._on_connection(far)

    def _refuse(self, header: Header) -> None:
        self._replies.append(Reply(header.from_port, header.to_port, Op.RST))

    def _break(self, stream: Stream, header: Header) -> None:
        """It ends at once."""
        self._refuse(header)
        self._drop(stream)

    # connections

    def _ready(self, stream: Stream, ready: int) -> None:
        """The host's end has taken something, or has something, or is gone."""
        if ready & HANGUP:  # comes again and again; what is left there is read as the guest has room for it
            self._watches.pop(stream.guest_port).close()
        stream.unread = stream.unread or bool(ready & (READ | HANGUP))
        stream.flush()
        self._after(stream)
        self._give_packets()

    def _after(self, stream: Stream, *, reset: bool = False) -> None:
        """Something has happened to a connection: what follows from it?  `reset`: the guest knows it no longer."""
        stream.flush()
        if stream.state is State.CLOSING:
            if reset:
                self._drop(stream)
            return
        if stream.state is State.FINISHING and not stream.pending:
            if not reset:
                self._replies.append(Reply(stream.guest_port, self._port, Op.RST))
            self._drop(stream)
            return
        if stream.credit_is_due:
            self._owe_credit(stream)
        self._rewatch(stream)

    def _owe_credit(self, stream: Stream) -> None:
        if not stream.owes_credit:
            stream.owes_credit = True
            self._replies.append(Reply(stream.guest_port, self._port, Op.CREDIT_UPDATE, 0, stream))

    def _rewatch(self, stream: Stream) -> None:
        watch = self._watches.get(stream.guest_port)
        if watch is not None:
            # `unread`: there is something to read already; the guest's next buffers or credit bring us back to it.
            watch.update(readable=stream.state is State.OPEN and not stream.unread, writable=stream.pending)

    def _drop(self, stream: Stream) -> None:
        if self._streams.get(stream.guest_port) is not stream:
            return
        del self._streams[stream.guest_port]
        watch = self._watches.pop(stream.guest_port, None)
        if watch is not None:
            watch.close()
        stream.near.close()
        self._look_idle()

    def _look_idle(self) -> None:
        if self._on_idle is not None and not any(stream.pending for stream in self._streams.values()):
            on_idle, self._on_idle = self._on_idle, None
            on_idle()

    # packets to the guest

    def _give_packets(self) -> None:
        """Replies first, then data, as far as the guest's buffers last."""
        ring = self._rings.get(TO_GUEST)
        if ring is None:
            return
        given = 0
        stalled = len(self._replies) >= MOST_REPLIES
        while given < TURN and self._give_one(ring):
            given += 1
        if given:
            self._call[TO_GUEST]()
        if given == TURN or (stalled and len(self._replies) < MOST_REPLIES):
            self._reactor.soon(self.kicked)
        for stream in self._streams.values():
            self._rewatch(stream)

    def _give_one(self, ring: Vring) -> bool:
        """One packet; False if there is none, or no buffer for it."""
        sender = next((item for item in self._streams.values() if _can_send(item)), None)
        chain = ring.pop() if self._replies or sender else None
        if chain is None:
            return False
        if sum(map(len, chain.writable)) < HEADER_BYTES:
            raise VsockError("buffer", "it has no room for the header of a packet")
        if self._replies:
            packet.put_header(chain.writable, _header(self._replies.popleft()))
            ring.push(chain, HEADER_BYTES)
            return True
        assert sender is not None
        return self._give_data(ring, chain, sender)

    def _give_data(self, ring: Vring, chain: Chain, stream: Stream) -> bool:
        space = packet.section(chain.writable, HEADER_BYTES, stream.credit)
        count = stream.fill(space) if space else None
        if not count:
            ring.unpop()
            if not space:
                raise VsockError("buffer", "it has no room for data")
            stream.unread = False
            if count == 0:
                stream.state = State.CLOSING
                flags = packet.NO_MORE_RECEIVED | packet.NO_MORE_SENT
                self._replies.append(Reply(stream.guest_port, self._port, Op.SHUTDOWN, flags, stream))
            return True  # there may be something else to send
        said = Reply(stream.guest_port, self._port, Op.RW, 0, stream)
        packet.put_header(chain.writable, _header(said, count))
        ring.push(chain, HEADER_BYTES + count)
        return True


def _header(said: Reply, length: int = 0) -> Header:
    buffer, forwarded = (BUFFER, said.stream.tell()) if said.stream is not None else (0, 0)
    return Header(HOST_CID, GUEST_CID, said.host_port, said.guest_port, length, packet.STREAM, said.op, said.flags,
                  buffer, forwarded)  # fmt: skip


def _can_send(stream: Stream) -> bool:
    return stream.state is State.OPEN and stream.unread and stream.credit > 0


def ring_eventfd(fd: int) -> None:
    """Adds one to an eventfd of QEMU's.  One that is full has been rung already."""
    try:
        os.eventfd_write(fd, 1)
    except BlockingIOError:
        return
