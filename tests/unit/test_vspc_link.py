"""The link over vSphere's serial port: the real endpoint behind scripted ESXi hosts, ours behind the concentrator."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.esx_host import SECONDS, SERVICE, UUID, UUID_DIGITS, EsxHost, Site, only, until
from tether.link.endpoint import Endpoint
from tether.link.events import Answered, Connected, Disconnected, Event, Requested
from tether.link.hello import APPLIANCE, TETHER
from tether.link.limits import UART
from tether.link.messages import Ping, Pong
from tether.link.reactor import Reactor
from tether.link.transport import of_fd
from tether.link.wire import Wire
from vch.machine.driver import void
from vch.machine.host_line import HostLine
from vch.vspc.concentrator import Concentrator


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def test_vmotion_under_a_link_that_is_busy_both_ways(site: Site) -> None:
    """The guest's real endpoint behind the scripted hosts, ours behind the server; it moves, stays, moves."""
    guest_end, uart = socket.socketpair()
    uart.setblocking(False)
    seen: list[Event] = []
    guest = Endpoint(TETHER, UART)
    guest_wire = Wire(site.reactor, guest, lambda event: None)
    guest_wire.attach(of_fd(guest_end.detach()))
    host = site.host()
    host.open()
    stream = only(site)
    ours = Endpoint(APPLIANCE, UART)
    wire = Wire(site.reactor, ours, seen.append)
    wire.attach(of_fd(stream.detach()))

    def move_bytes(current: EsxHost) -> None:
        """The hypervisor's part: between UART and connection."""
        with contextlib.suppress(BlockingIOError):
            current.serial(uart.recv(4096))
        with contextlib.suppress(BlockingIOError):
            del current.data[: uart.send(current.data)]

    size = 600_000
    out, back = os.urandom(size), os.urandom(size)
    got_out, got_back = bytearray(), bytearray()
    left_out, left_back = memoryview(out), memoryview(back)
    moves = [size // 4, size // 2, size * 3 // 4]
    deadline = time.monotonic() + 60
    while len(got_out) < size or len(got_back) < size:
        assert time.monotonic() < deadline, (len(got_out), len(got_back))
        left_out = left_out[guest.stream(17).write(left_out[:5000]) :] if guest.stream(17).room >= 5000 else left_out
        left_back = left_back[ours.stream(16).write(left_back[:5000]) :] if ours.stream(16).room >= 5000 else left_back
        got_out += ours.stream(17).read(1 << 20)
        got_back += guest.stream(16).read(1 << 20)
        move_bytes(host)
        site.reactor.run_once(0.001)
        if moves and len(got_out) > moves[0]:
            sequence = b"seq%d" % moves.pop(0)
            host.command(40, sequence)
            claim = host.expect(41)
            while host.data:  # the VM still runs here while its memory is copied
                move_bytes(host)
            new = site.host()
            new.arrive(claim)
            new.expect(45)
            if len(moves) == 2:  # the second of the three comes to nothing
                host.command(48)
                new.sent_away()
                continue
            if moves:
                host.hang_up()
                new.command(46, sequence)
            else:
                new.command(46, sequence)
                host.hang_up()
            host = new
    assert got_out == out
    assert got_back == back
    assert len([event for event in seen if isinstance(event, Connected)]) == 1
    assert not [event for event in seen if isinstance(event, Disconnected)]
    assert ours.noise == (0, 0)
    assert guest.noise == (0, 0)
    wire.close()
    guest_wire.close()
    uart.close()


class Guest:
    """A VM on vSphere: the real endpoint at its UART, and the host that it runs on."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.reactor = Reactor()
        near, self._uart = socket.socketpair()
        self._uart.setblocking(False)
        self.endpoint = Endpoint(TETHER, UART)
        self._wire = Wire(self.reactor, self.endpoint, self._event)
        self._wire.attach(of_fd(near.detach()))
        self._address = address
        self._ending = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Guest:
        self._thread.start()
        return self

    def __exit__(self, *_what: object) -> None:
        self._ending = True
        self._thread.join(SECONDS)

    def _event(self, event: Event) -> None:
        if isinstance(event, Requested):
            self.endpoint.answer(event.id, Pong(monotonic_ns=1, realtime_ns=2))

    def _run(self) -> None:
        host = EsxHost(self.reactor, self._address)
        host.open()
        while not self._ending:
            with contextlib.suppress(BlockingIOError):
                host.serial(self._uart.recv(4096))
            with contextlib.suppress(BlockingIOError):
                del host.data[: self._uart.send(host.data)]
            self.reactor.run_once(0.005)
        host.hang_up()
        self._wire.close()
        self._uart.close()
        self.reactor.close()


class TestConcentrator:
    """What a driver does with its line, and a guest at the other end of it."""

    @pytest.fixture
    def concentrator(self) -> Iterator[Concentrator]:
        with Concentrator(socket.create_server(("127.0.0.1", 0)), SERVICE) as made:
            yield made

    @pytest.mark.parametrize("who", ["the guest comes first", "the appliance comes first"])
    def test_requests_are_answered_and_a_lost_transport_is_replaced(self, concentrator: Concentrator, who: str) -> None:
        with contextlib.ExitStack() as stack:
            guest = Guest(concentrator.address)
            if who == "the guest comes first":
                stack.enter_context(guest)
                deadline = time.monotonic() + SECONDS
                while not concentrator.waiting and time.monotonic() < deadline:
                    time.sleep(0.001)
                assert concentrator.waiting == {UUID_DIGITS: "web-1"}
            reactor, seen = Reactor(), list[Event]()
            endpoint = Endpoint(APPLIANCE, UART)
            line: HostLine = concentrator.line(UUID.decode())
            wire = Wire(reactor, endpoint, seen.append, lambda reason: void(line.lost()))
            line.serve(wire)
            if who == "the appliance comes first":
                stack.enter_context(guest)
            self.ask(reactor, endpoint, seen)
            assert wire.transport is not None
            with socket.socket(fileno=os.dup(wire.transport.fd)) as end:
                end.shutdown(socket.SHUT_RDWR)
            self.ask(reactor, endpoint, seen)
            assert [event.resumed for event in seen if isinstance(event, Connected)] == [False, True]
            line.close()
            wire.close()
            reactor.close()

    @staticmethod
    def ask(reactor: Reactor, endpoint: Endpoint, seen: list[Event]) -> None:
        number = endpoint.request(Ping())
        until(reactor, lambda: any(isinstance(event, Answered) and event.id == number for event in seen), "the answer")

    def test_a_vm_that_nobody_wants_any_more_is_sent_away(self, concentrator: Concentrator) -> None:
        reactor = Reactor()
        host = EsxHost(reactor, concentrator.address)
        host.open()
        line = concentrator.line(UUID_DIGITS)
        wire = Wire(reactor, Endpoint(APPLIANCE, UART), lambda event: None)
        line.serve(wire)
        until(reactor, lambda: wire.transport is not None, "the VM's stream")
        line.close()
        host.sent_away()
        wire.close()
        reactor.close()
