"""Copies of a machine that runs, each with the guest's end of the link as it was in memory: fork(2) makes them.

Machines of ours are cloned before their end of the link is made (tether/link/waking.py).  A hypervisor can clone one
that runs, with streams under way; then each copy meets an appliance of its own, which knows nothing.
"""

import os
import socket
from collections.abc import Iterator

import pytest

from tests.link_pair import Pair
from tether.link.endpoint import Endpoint
from tether.link.events import Answered, Connected, Event, Gone, Notified, Overtaken, Requested
from tether.link.hello import APPLIANCE, TETHER
from tether.link.messages import Done, Ended, Exited, Ping, Pong
from tether.link.reactor import Reactor
from tether.link.transport import of_fd
from tether.link.wire import Wire

OUTPUT = bytes(range(256)) * 40
TAKEN, GIVEN = 3000, b"what the first appliance has typed, "
SECONDS = 30.0


class Clones:
    """A pair that has been talking, and copies of its guest's end."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.pair.connect()
        self.output = self.pair.tether.stream(17)
        self.output.write(OUTPUT)
        self.pair.appliance.stream(16).write(GIVEN)
        self.pair.settle()
        assert self.pair.appliance.stream(17).read(TAKEN) == OUTPUT[:TAKEN]
        self.pair.settle()
        self.asked = self.pair.appliance.request(Ping())
        self.pair.run()  # and it is not answered: the copies are made in between
        self.children: list[int] = []

    def make(self, name: bytes) -> socket.socket:
        """A copy that goes on by itself; the appliance's end of its port."""
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                ours.close()
                self._live(theirs.detach(), name)
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        self.children.append(child)
        return ours

    def _live(self, port: int, name: bytes) -> None:
        """What the guest does in the copy: answers, echoes its input behind its output, ends when it is told."""
        tether, reactor = self.pair.tether, Reactor()
        tether.disconnected()
        done = False

        def take(event: Event) -> None:
            nonlocal done
            if isinstance(event, Requested):
                tether.answer(event.id, Pong(monotonic_ns=1, realtime_ns=1))
                done = event.id != self.asked
                self.output.write(tether.stream(16).read(1000) + name)
                self.output.finish()
                tether.notify(Ended(session=0, state=Exited(code=len(name))))

        wire = Wire(reactor, tether, take)
        wire.attach(of_fd(port))
        assert reactor.run_until(lambda: done and wire.transport is None, SECONDS)  # the appliance hangs up

    def end(self) -> None:
        for child in self.children:
            _, status = os.waitpid(child, 0)
            assert status == 0


@pytest.fixture
def clones() -> Iterator[Clones]:
    made = Clones()
    yield made
    made.end()


@pytest.mark.parametrize("names", [(b"one", b"another", b"a third")])
def test_each_copy_goes_on_from_the_same_point_with_an_appliance_of_its_own(
    clones: Clones, names: tuple[bytes, ...]
) -> None:
    ports = [clones.make(name) for name in names]
    for name, port in zip(names, ports, strict=True):
        meet(port, name)


def meet(port: socket.socket, name: bytes) -> None:
    """A fresh appliance and a copy: what it is told, what it gets, what it can still say."""
    reactor, seen = Reactor(), list[Event]()
    fresh = Endpoint(APPLIANCE)
    wire = Wire(reactor, fresh, seen.append)
    fresh.stream(16).write(b"and the second")
    asked = fresh.request(Ping())
    wire.attach(of_fd(port.detach()))
    assert reactor.run_until(lambda: any(isinstance(event, Notified) for event in seen), SECONDS)
    stream, got = fresh.stream(17), b""
    while not stream.ended:
        assert reactor.run_until(lambda: bool(stream.buffered or stream.ended), SECONDS)
        got += stream.read(1 << 20)
    assert wire.flush(SECONDS)
    (connected,) = [event for event in seen if isinstance(event, Connected)]
    assert (connected.resumed, connected.replaced) == (False, False)
    assert Gone(stream=17, count=TAKEN) in seen
    assert Overtaken(stream=16, count=len(GIVEN)) in seen
    assert got == OUTPUT[TAKEN:] + GIVEN + b"and the second" + name
    answers = [event.message for event in seen if isinstance(event, Answered) and event.id == asked]
    assert answers == [Pong(monotonic_ns=1, realtime_ns=1)]
    notified = [event.message for event in seen if isinstance(event, Notified)]
    assert notified == [Ended(session=0, state=Exited(code=len(name)))]
    wire.close()
    reactor.close()


def test_an_appliance_that_meets_another_machine_drops_what_it_had(clones: Clones) -> None:
    """A clone that was woken has an instance of its own: the appliance of its template must not mix the two up."""
    appliance = clones.pair.appliance
    appliance.disconnected()
    appliance.events()
    woken = Pair()
    woken.appliance = appliance
    woken.connect()
    (connected,) = woken.of(APPLIANCE, Connected)
    assert isinstance(connected, Connected)
    assert connected.replaced
    assert any(isinstance(event, Answered) and event.id == clones.asked for event in woken.seen[APPLIANCE])
    assert not [event for event in woken.seen[TETHER] if isinstance(event, Requested)]
    woken.appliance.request(Ping())
    woken.run()
    (requested,) = woken.of(TETHER, Requested)
    assert isinstance(requested, Requested)
    woken.tether.answer(requested.id, Done())
