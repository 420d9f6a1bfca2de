"""Endpoints over real file descriptors: socketpairs and a FIFO that behaves like a virtio port."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tether.link.endpoint import Endpoint
from tether.link.events import Answered, Connected, Disconnected, Event, Failed, Notified, Readable, Requested
from tether.link.hello import APPLIANCE, TETHER
from tether.link.messages import Done, Ping, Pong, Ready
from tether.link.reactor import HANGUP, READ, WRITE, Reactor, Watch
from tether.link.transport import Transport, of_fd
from tether.link.wire import Wire

PATIENCE = 60.0


class Ends:
    """An appliance and a tether on one reactor, over a socketpair."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.events: dict[str, list[Event]] = {APPLIANCE: [], TETHER: []}
        self.closed: list[str] = []
        self.appliance = Endpoint(APPLIANCE)
        self.tether = Endpoint(TETHER)
        self.appliance_wire = Wire(reactor, self.appliance, self.events[APPLIANCE].append, self.closed.append)
        self.tether_wire = Wire(reactor, self.tether, self.events[TETHER].append, self.closed.append)
        self.attach()

    def attach(self) -> None:
        a, b = socket.socketpair()
        self.appliance_wire.attach(of_fd(a.detach()))
        self.tether_wire.attach(of_fd(b.detach()))

    def until(self, role: str, kind: type[Event], count: int = 1) -> list[Event]:
        def found() -> list[Event]:
            return [event for event in self.events[role] if isinstance(event, kind)]

        assert self.reactor.run_until(lambda: len(found()) >= count, PATIENCE), f"no {kind.__name__} for {role}"
        return found()

    def close(self) -> None:
        self.appliance_wire.close()
        self.tether_wire.close()


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    one = Reactor()
    yield one
    one.close()


@pytest.fixture
def ends(reactor: Reactor) -> Iterator[Ends]:
    one = Ends(reactor)
    yield one
    one.close()


def test_request_and_answer(ends: Ends) -> None:
    ends.until(APPLIANCE, Connected)
    id = ends.appliance.request(Ping())
    ends.until(TETHER, Requested)
    ends.tether.answer(id, Pong(monotonic_ns=1, realtime_ns=2))
    (answered,) = ends.until(APPLIANCE, Answered)
    assert answered == Answered(id=id, message=Pong(monotonic_ns=1, realtime_ns=2))


def test_bulk_both_ways_with_cuts(ends: Ends) -> None:
    """Sockets are cut at any byte, over and over, while both directions are full."""
    data = os.urandom(8_000_000)
    pairs = [
        (ends.tether.stream(17), ends.appliance.stream(17)),
        (ends.appliance.stream(16), ends.tether.stream(16)),
    ]
    sent, got = [0, 0], [bytearray(), bytearray()]
    cut_at = iter(range(300_000, 8_000_000, 500_000))
    next_cut: int | None = next(cut_at)
    deadline = time.monotonic() + 60
    while not all(into.ended for _, into in pairs):
        assert time.monotonic() < deadline, "the transfer did not end"
        for index, (out, into) in enumerate(pairs):
            if sent[index] < len(data):
                sent[index] += out.write(memoryview(data)[sent[index] : sent[index] + 65536])
                if sent[index] == len(data):
                    out.finish()
            got[index] += into.read(100_000)
        if next_cut is not None and len(got[0]) > next_cut:
            next_cut = next(cut_at, None)
            ends.attach()
        ends.reactor.run_once(0.01)
    assert bytes(got[0]) == data
    assert bytes(got[1]) == data
    assert len(ends.until(APPLIANCE, Disconnected)) > 10


def test_the_other_end_closes(ends: Ends) -> None:
    ends.until(APPLIANCE, Connected)
    ends.tether_wire.detach("test")
    ends.until(APPLIANCE, Disconnected)
    assert len(ends.closed) == 1
    ends.tether.notify(Ready(version="late", kernel=""))
    ends.attach()
    assert ends.until(APPLIANCE, Notified) == [Notified(message=Ready(version="late", kernel=""))]


def test_flush_waits_for_the_last_words(ends: Ends) -> None:
    ends.until(APPLIANCE, Connected)
    out, into = ends.tether.stream(17), ends.appliance.stream(17)
    out.write(b"x" * 400_000)
    out.finish()
    ends.reactor.run_until(lambda: into.buffered == 400_000, PATIENCE)
    assert not ends.tether_wire.flush(0.05)  # the end counts as arrived when the peer's program has read all
    assert len(into.read(1 << 20)) == 400_000
    assert ends.tether_wire.flush(PATIENCE)
    assert out.drained


def test_a_broken_peer_ends_the_connection_only(reactor: Reactor) -> None:
    events: list[Event] = []
    closed: list[str] = []
    a, b = socket.socketpair()
    wire = Wire(reactor, Endpoint(APPLIANCE), events.append, closed.append)
    wire.attach(of_fd(a.detach()))
    from tether.link.frame import HELLO, build

    b.sendall(b"".join(build(HELLO, 0, parts=[b"\x01"])))
    assert reactor.run_until(lambda: bool(closed), PATIENCE)
    assert [type(event) for event in events] == [Failed]
    wire.close()
    b.close()


def test_an_absent_host_does_not_spin(reactor: Reactor) -> None:
    """A pseudo terminal whose other end is closed reports POLLHUP for ever, as a virtio port does."""
    master, slave = os.openpty()
    os.close(slave)
    wire = Wire(reactor, Endpoint(TETHER), lambda event: None)
    wire.attach(Transport(master, "port", permanent=True))
    start, rounds = time.process_time(), 0
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        reactor.run_once(0.1)
        rounds += 1
    assert rounds < 20
    assert time.process_time() - start < 0.2
    wire.close()


def test_callbacks_may_close_the_wire(ends: Ends) -> None:
    ends.until(APPLIANCE, Connected)
    ends.tether._events.clear()
    wires = [ends.tether_wire]
    ends.tether_wire._on_event = lambda event: wires[0].close()
    ends.appliance.request(Ping())
    ends.until(APPLIANCE, Disconnected)


# the reactor by itself


def test_timers_run_in_order_and_can_be_cancelled(reactor: Reactor) -> None:
    seen: list[int] = []
    reactor.call_later(0.02, lambda: seen.append(2))
    reactor.call_later(0.01, lambda: seen.append(1))
    reactor.call_later(0.015, lambda: seen.append(9)).cancel()
    assert reactor.run_until(lambda: len(seen) == 2, PATIENCE)
    assert seen == [1, 2]


def test_a_wait_ends_at_its_deadline(reactor: Reactor) -> None:
    start = time.monotonic()
    assert not reactor.run_until(lambda: False, 0.05)
    assert 0.04 < time.monotonic() - start < 60


def test_post_from_another_thread_wakes(reactor: Reactor) -> None:
    seen: list[int] = []
    thread = threading.Timer(0.05, lambda: reactor.post(lambda: seen.append(1)))
    thread.start()
    assert reactor.run_until(lambda: bool(seen), PATIENCE)
    thread.join()


def test_regular_files_are_always_ready(reactor: Reactor, tmp_path: object) -> None:
    fd = os.open(f"{tmp_path}/file", os.O_RDWR | os.O_CREAT)
    seen: list[int] = []
    watch = reactor.watch(fd, seen.append)
    reactor.run_once(PATIENCE)
    assert seen == [READ]
    watch.update(readable=True, writable=True)
    reactor.run_once(PATIENCE)
    assert seen[-1] == READ | WRITE
    watch.update(readable=False, writable=False)
    reactor.run_once(0.01)
    assert len(seen) == 2
    watch.close()
    watch.close()
    os.close(fd)


def test_a_watch_may_close_itself_and_others(reactor: Reactor) -> None:
    pipes = [os.pipe() for _ in range(2)]
    watches: list[Watch] = []
    seen: list[int] = []

    def close_all(_ready: int) -> None:
        seen.append(1)
        for watch in watches:
            watch.close()

    for into, out in pipes:
        watches.append(reactor.watch(into, close_all))
        os.write(out, b"x")
    reactor.run_once(0.1)
    reactor.run_once(0.01)
    assert seen == [1]
    for pair in pipes:
        for fd in pair:
            os.close(fd)


def test_hangup_comes_unasked(reactor: Reactor) -> None:
    into, out = os.pipe()
    seen: list[int] = []
    watch = reactor.watch(into, seen.append, readable=False)
    os.close(out)
    reactor.run_once(PATIENCE)
    assert seen
    assert seen[0] & HANGUP
    watch.close()
    os.close(into)


def test_the_answer_reaches_a_stalled_reader(ends: Ends) -> None:
    """Requests get through while bulk data of another stream waits for its reader."""
    ends.until(APPLIANCE, Connected)
    ends.tether.stream(17).write(b"x" * 10_000_000)
    ends.until(APPLIANCE, Readable)
    start = time.monotonic()
    id = ends.appliance.request(Ping())
    ends.until(TETHER, Requested)
    ends.tether.answer(id, Done())
    ends.until(APPLIANCE, Answered)
    assert time.monotonic() - start < 30
