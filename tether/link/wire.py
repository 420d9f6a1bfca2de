"""Drives an endpoint over a transport in a reactor: reads, writes, time, and the comings and goings of the other end.

Nothing here blocks but `flush`, which has a deadline.  Every event of the endpoint goes to `on_event`.
"""

import os
from select import POLLHUP, POLLIN, poll

from tether.link.errors import ProtocolError
from tether.link.events import Failed
from tether.link.reactor import HANGUP, READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.link.endpoint import Endpoint
    from tether.link.events import Event
    from tether.link.frame import Part
    from tether.link.reactor import Reactor, Timer, Watch
    from tether.link.transport import Transport

_ACK_DELAY = 0.02  # s; how long an acknowledgement may wait for something to travel with
_FIRST_TICK, _LAST_TICK = 0.5, 8.0  # s; time without progress until a question goes out, doubling
_ABSENT = 1.0  # s; how often an absent host is looked for, should the kernel not tell
_REST = 1.0  # s; pause after the peer broke the protocol, so that a broken one costs nothing
_MOST_PIECES = 64  # of one writev; IOV_MAX is 1024
# A virtio-serial port takes each piece of a writev as a message of its own, with a buffer and a wake-up of the host: to
# join small frames costs less than one of these.
_SMALL = 16 * 1024
_PAGE = 4096
_PAGES = [slice(at, at + _PAGE) for at in range(0, 256 * 1024, _PAGE)]  # of one readv, at most; IOV_MAX is 1024
_ROUNDS = 4  # reads, or writes, in a row before others get their turn


class Wire:
    """See the module.

    on_event   called for each event, may call anything of the endpoint and the wire
    on_closed  called when a transport that is not permanent has ended, with the reason; `attach` brings the next one
    """

    def __init__(
        self,
        reactor: "Reactor",
        endpoint: "Endpoint",
        on_event: "Callable[[Event], None]",
        on_closed: "Callable[[str], None] | None" = None,
    ) -> None:
        self.reactor, self.endpoint = reactor, endpoint
        self.transport: Transport | None = None
        self._on_event, self._on_closed = on_event, on_closed
        self._watch: Watch | None = None
        self._unsent: list[Part] = []
        self._absent = False  # the host end of a permanent transport is away, or the link rests
        self._resting = False  # the peer broke the protocol a moment ago
        self._scheduled = False  # a pump is under way
        self._blocked = False  # the transport takes no more for now
        self._paced: Timer | None = None  # the transport is not read until then
        self._ack_timer: Timer | None = None
        self._tick_timer: Timer | None = None
        self._tick_after = _FIRST_TICK
        self._pause_timer: Timer | None = None
        endpoint.on_output = self._schedule

    def attach(self, transport: "Transport") -> None:
        """Goes on over this transport, which belongs to the wire from now on."""
        self.detach("another transport takes over")
        self.transport = transport
        self._begin()

    def detach(self, reason: str) -> None:
        """Closes the transport; the streams wait for the next one."""
        transport, self.transport = self.transport, None
        if transport is None:
            return
        self._end(reason)
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        transport.close()
        self._deliver()

    def close(self) -> None:
        """The end: detaches, and never calls back again."""
        self.endpoint.on_output = _nothing
        self._on_event, self._on_closed = _ignore, None
        self.detach("closed")

    def flush(self, seconds: float) -> bool:
        """Runs the reactor until everything written has arrived at the peer; False if `seconds` did not suffice.

        For the last words before a power-off.
        """
        self._schedule()
        return self.reactor.run_until(lambda: self.endpoint.settled and not self._unsent, seconds)

    # connections

    def _begin(self) -> None:
        transport = self.transport
        if transport is None:
            return
        self._pause_timer = None
        self._absent = self._resting = self._blocked = False
        self._unsent.clear()
        if self._watch is None:
            self._watch = self.reactor.watch(transport.fd, self._ready)
        self.endpoint.connected()
        self._watch.update(readable=True, writable=False)
        self._tick_after = _FIRST_TICK
        self._pump()

    def _end(self, reason: str) -> None:
        """The connection is over; the transport may stay."""
        for timer in (self._ack_timer, self._tick_timer, self._pause_timer, self._paced):
            if timer is not None:
                timer.cancel()
        self._ack_timer = self._tick_timer = self._pause_timer = self._paced = None
        self._unsent.clear()
        self.endpoint.disconnected(reason)

    def _lost(self, reason: str) -> None:
        """The other end has gone away."""
        transport = self.transport
        if transport is None:
            return
        if transport.permanent:
            self._end(reason)
            self._absent = True
            self._watch_for_change()
            self._pause_timer = self.reactor.call_later(_ABSENT, self._look)
            self._deliver()
            return
        self.detach(reason)
        if self._on_closed is not None:
            self._on_closed(reason)

    def _watch_for_change(self) -> None:
        """While the host is away HANGUP holds all the time: only that a write is possible again is of interest."""
        if self._watch is not None:
            self._watch.update(readable=False, writable=True, edge=True)

    def _look(self) -> None:
        """Is the host back?"""
        transport = self.transport
        if transport is None or not self._absent:
            return
        if self._pause_timer is not None:
            self._pause_timer.cancel()
        poller = poll()
        poller.register(transport.fd, POLLIN)
        if any(events & POLLHUP for _, events in poller.poll(0)):
            self._pause_timer = self.reactor.call_later(_ABSENT, self._look)
        else:
            self._begin()

    def _rested(self) -> None:
        self._resting = False
        self._look()

    def _broken(self, error: ProtocolError) -> None:
        """The peer broke the protocol: ends the connection, and on a permanent transport greets again after a rest."""
        reason = str(error)
        self._deliver()
        self._end(reason)
        self._deliver()
        self._on_event(Failed(reason=reason))
        transport = self.transport
        if transport is None:
            return
        if not transport.permanent:
            self.detach(reason)
            if self._on_closed is not None:
                self._on_closed(reason)
            return
        self._watch_for_change()
        self._absent = self._resting = True
        self._pause_timer = self.reactor.call_later(_REST, self._rested)

    # bytes

    def _ready(self, ready: int) -> None:
        if self._absent:
            if not self._resting and not ready & HANGUP:
                self._look()
            return
        if ready & WRITE:
            self._blocked = False
        if ready & (READ | HANGUP):
            self._read()
        transport = self.transport
        if transport is not None and not self._absent:
            if transport.pace and self._paced is None:
                self._paced = self.reactor.call_later(transport.pace, self._read_again)
            self._pump()

    def _read_again(self) -> None:
        self._paced = None
        if self._watch is not None:
            self._watch.update(readable=True, writable=self._blocked)

    def _read(self) -> None:
        for _ in range(_ROUNDS):
            transport = self.transport
            if transport is None or self._absent:
                return
            space = self.endpoint.space()
            try:
                count = read_into(transport.fd, space)
            except BlockingIOError:
                return
            except OSError as error:
                self._lost(f"{transport.name}: {error.strerror}")
                return
            if count == 0:
                self._lost(f"{transport.name}: the other end is away")
                return
            self._tick_after = _FIRST_TICK
            try:
                self.endpoint.filled(count)
            except ProtocolError as error:
                self._broken(error)
                return
            self._deliver()
            if count < len(space):
                return

    def _deliver(self) -> None:
        for event in self.endpoint.events():
            self._on_event(event)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.reactor.soon(self._pump)

    def _pump(self) -> None:
        """Writes what there is to write, as far as the transport takes it."""
        self._scheduled = False
        transport = self.transport
        if transport is None or self._absent or self._watch is None:
            return
        rounds = _ROUNDS
        while (self._unsent or not self.endpoint.idle) and not self._blocked and self._write(transport):
            rounds -= 1
            if not rounds:
                self._schedule()
                break
        if self.transport is not transport or self._absent:
            return
        self._watch.update(self._paced is None, self._blocked)
        if self._tick_timer is None or self._ack_timer is None:
            self._arm()

    def _write(self, transport: "Transport") -> bool:
        """One writev; False when there is nothing left to write or the transport takes no more."""
        pieces = self._unsent
        if not pieces:
            parts = self.endpoint.gather()
            if not parts:
                return False
            pieces = self._unsent = _pieces(parts, transport.piece)
        try:
            count = os.writev(transport.fd, pieces if len(pieces) <= _MOST_PIECES else pieces[:_MOST_PIECES])
        except BlockingIOError:
            self._blocked = True
            return False
        except OSError as error:
            self._lost(f"{transport.name}: {error.strerror}")
            return False
        if count == sum(map(len, pieces)):
            self._unsent = []
            return True
        done = 0
        while done < len(pieces) and count >= len(pieces[done]):
            count -= len(pieces[done])
            done += 1
        del pieces[:done]
        if pieces and count:
            pieces[0] = memoryview(pieces[0])[count:]
        return True

    # time

    def _arm(self) -> None:
        if self.endpoint.owes and self._ack_timer is None:
            self._ack_timer = self.reactor.call_later(_ACK_DELAY, self._acknowledge)
        if self._tick_timer is None and self.endpoint.waiting:
            self._tick_timer = self.reactor.call_later(self._tick_after, self._tick)

    def _acknowledge(self) -> None:
        self._ack_timer = None
        self.endpoint.acknowledge()

    def _tick(self) -> None:
        self._tick_timer = None
        self._tick_after = min(2 * self._tick_after, _LAST_TICK)
        try:
            self.endpoint.tick()
        except ProtocolError as error:
            self._broken(error)
            return
        self._deliver()
        self._schedule()


def _pieces(parts: "list[Part]", longest: int) -> "list[Part]":
    """What one writev is to be given: small frames joined, and nothing longer than `longest` if that is not 0."""
    if len(parts) > 1 and sum(map(len, parts)) <= _SMALL:
        return [b"".join(parts)]
    if not longest or max(map(len, parts)) <= longest:
        return parts
    pieces: list[Part] = []
    for part in parts:
        if len(part) <= longest:
            pieces.append(part)
        else:
            view = memoryview(part)
            pieces += [view[at : at + longest] for at in range(0, len(part), longest)]
    return pieces


def read_into(fd: int, space: memoryview) -> int:
    """Reads what is there and fits; 0 at the end.  Raises OSError, BlockingIOError if nothing is there.

    A virtio-serial port gives one page at a time, however much waits, but one for each piece of a readv that it fills.
    To look at the frames after each page would cost twenty times the read.
    """
    return os.readv(fd, [*map(space.__getitem__, _PAGES[: -(-len(space) // _PAGE)])])


def _nothing() -> None:
    """After close there is nobody to tell."""


def _ignore(_event: "Event") -> None:
    """After close there is nobody to tell."""
