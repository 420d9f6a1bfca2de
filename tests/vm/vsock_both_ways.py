"""Runs inside a VM whose kernel has vsock_loopback: the agent's line, and an appliance in the same process.

    python3 vsock_both_ways.py connect|listen

Sends random bytes both ways while the connection is cut again and again; prints "same" if every byte has arrived.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import Callable

from tether import vsockline
from tether.link import limits, transport_vsock
from tether.link.endpoint import Endpoint
from tether.link.errors import TransportError
from tether.link.events import Connected, Event, Readable, Writable
from tether.link.hello import APPLIANCE, TETHER
from tether.link.reactor import Reactor
from tether.link.transport_vsock import LOOPBACK
from tether.link.wire import Wire

PORT, STRANGERS_PORT = 7000, 7001
STREAM = 16
SIZE = 4 << 20
CUTS = 5
AGAIN_S = 0.05
SECONDS = 100.0


class End:
    """One end of the link: what it has to say, and what it has heard."""

    def __init__(self, reactor: Reactor, role: str, lost: Callable[[str], None]) -> None:
        self.endpoint = Endpoint(role, limits.PORT)
        self.wire = Wire(reactor, self.endpoint, self._take, lost)
        self.data, self.said, self.heard, self.connections = os.urandom(SIZE), 0, bytearray(), 0
        self.finished = False
        self._write()

    def _take(self, event: Event) -> None:
        if isinstance(event, Connected):
            self.connections += 1
        elif isinstance(event, Readable) and event.stream == STREAM:
            self.heard += self.endpoint.stream(STREAM).read(1 << 20)
        elif isinstance(event, Writable) and event.stream == STREAM:
            self._write()

    def _write(self) -> None:
        if self.finished:
            return
        self.said += self.endpoint.stream(STREAM).write(self.data[self.said :])
        if self.said == SIZE:
            self.finished = True
            self.endpoint.stream(STREAM).finish()

    def cut(self) -> None:
        """Ends the connection, if there is one."""
        if self.wire.transport is not None:
            with socket.socket(fileno=os.dup(self.wire.transport.fd)) as end:
                end.shutdown(socket.SHUT_RDWR)


def appliance_listens(reactor: Reactor) -> End:
    """The agent is to connect."""
    appliance = End(reactor, APPLIANCE, lambda _reason: None)
    listener = transport_vsock.listen(PORT)

    def connected(_ready: int) -> None:
        transport = transport_vsock.accept(listener, LOOPBACK)
        if transport is not None:
            appliance.wire.attach(transport)

    reactor.watch(listener.fileno(), connected)
    return appliance


def appliance_connects(reactor: Reactor) -> End:
    """The agent is to listen."""

    def dial(_reason: str = "") -> None:
        try:
            near = transport_vsock.start_connecting(LOOPBACK, PORT)
        except TransportError:
            reactor.call_later(AGAIN_S, dial)
            return
        watch = reactor.watch(near.fileno(), lambda _ready: decided(), readable=False, writable=True)

        def decided() -> None:
            watch.close()
            try:
                appliance.wire.attach(transport_vsock.connected(near, LOOPBACK, PORT))
            except TransportError:
                reactor.call_later(AGAIN_S, dial)

    appliance = End(reactor, APPLIANCE, dial)
    dial()
    return appliance


def refused(reactor: Reactor, line: vsockline.VsockLine) -> bool:
    """Whether a process of the container that plays the appliance is hung up on."""
    tether = End(reactor, TETHER, line.lost)
    line.serve(tether.wire)
    with socket.socket(socket.AF_VSOCK) as stranger:
        stranger.settimeout(SECONDS)
        stranger.connect((LOOPBACK, STRANGERS_PORT))
        reactor.run_until(lambda: False, 1)
        try:
            return stranger.recv(1) == b"" and tether.wire.transport is None
        except ConnectionResetError:
            return tether.wire.transport is None


def main(way: str) -> None:
    """See the module."""
    reactor = Reactor()
    if way == "connect":
        line: vsockline.VsockLine = vsockline.vsock_line(f"{LOOPBACK}:{PORT}")
    else:
        if not refused(Reactor(), vsockline.vsock_line(f"listen:{STRANGERS_PORT}")):
            print("a stranger was let in")
            return
        transport_vsock.accept = functools.partial(transport_vsock.accept, allowed=LOOPBACK)
        line = vsockline.vsock_line(f"listen:{PORT}")
    tether = End(reactor, TETHER, line.lost)
    line.serve(tether.wire)
    appliance = appliance_listens(reactor) if way == "connect" else appliance_connects(reactor)
    for number in range(1, CUTS + 1):
        wanted = SIZE * number // (CUTS + 1)
        assert reactor.run_until(lambda: len(appliance.heard) >= wanted, SECONDS), "nothing moves"  # noqa: B023
        (tether if number % 2 else appliance).cut()
    done = reactor.run_until(
        lambda: len(appliance.heard) >= SIZE and len(tether.heard) >= SIZE, SECONDS)
    same = appliance.heard == tether.data and tether.heard == appliance.data
    print("same" if done and same else "different", appliance.connections > CUTS)


main(sys.argv[1])
