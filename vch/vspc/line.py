"""The sockets of the serial port endpoint: of hosts on one side, of a VM's reader on the other.

What a VM's reader does not take stops the reading of its connection, what a host does not take stops the reading of the
stream: nothing is buffered beyond the bounds of session.py and port.py.  While a VM has no reader its connection is
kept and not read.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tether.link.reactor import HANGUP, READ
from vch.vspc.telnet import VspcError

if TYPE_CHECKING:
    from tether.link.reactor import Reactor, Watch
    from vch.vspc.port import Port
    from vch.vspc.session import Event, Session

READ_SIZE = 16 << 10
SEND_QUEUE = 64 << 10  # bytes for a host that wait; the rest of the session's queue is for commands
IDENTIFY_SECONDS = 30.0  # for a host to say whom it brings
# For the old host to close once the VM has moved: its VM stands still, so this is for bytes that are under way already.
OLD_HOST_SECONDS = 1.0


class Connection:
    """A host's socket.  `on_event` may raise VspcError, which ends it; `on_end` is told why it ended, or ""."""

    def __init__(
        self,
        reactor: Reactor,
        end: socket.socket,
        session: Session,
        on_event: Callable[[Connection, Event], None],
        on_end: Callable[[Connection, str], None],
    ) -> None:
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a host that has lost its power says nothing
        self.session = session
        self.line: Line | None = None
        self._end, self._on_event, self._on_end = end, on_event, on_end
        self._reading = True
        self._watch: Watch | None = reactor.watch(end.fileno(), self._ready, writable=True)
        self._timer = reactor.call_later(IDENTIFY_SECONDS, self._late)

    @property
    def closed(self) -> bool:
        """It is over."""
        return self._watch is None

    def update(self, reading: bool) -> None:
        """Reads or not; writes if there is something."""
        self._reading = reading
        if self._watch is not None:
            self._watch.update(readable=reading, writable=bool(self.session.queued))

    def close(self, complaint: str = "") -> None:
        """Ends it; a second call does nothing."""
        if self._watch is None:
            return
        self._watch.close()
        self._watch = None
        self._end.close()
        self._timer.cancel()
        self._on_end(self, complaint)

    def _late(self) -> None:
        if self.line is None:
            self.close("serial port: a host that does not say which VM it brings")

    def _ready(self, ready: int) -> None:
        try:
            self._write()
            if ready & (READ | HANGUP):
                # A host that has hung up is read to its end even while its bytes have to wait for somebody.
                self._read()
            self._write()
        except VspcError as error:
            self.close(str(error))
        except OSError as error:
            self.close(f"serial port: {error.strerror}")
        if self.line is not None:
            self.line.balance()
        else:
            self.update(self._reading)

    def _read(self) -> None:
        if self._watch is None:
            return
        try:
            data = self._end.recv(READ_SIZE)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        for event in self.session.receive(data):
            self._on_event(self, event)
            if self.closed:  # by what has just been said
                return

    def _write(self) -> None:
        while self._watch is not None and self.session.queued:
            try:
                self.session.sent(self._end.send(self.session.transmit(READ_SIZE)))
            except BlockingIOError:
                return


class Line:
    """A VM: its port, the connections of it, and our end of the stream that its reader has, if it has one."""

    def __init__(self, reactor: Reactor, port: Port) -> None:
        self.port = port
        self._reactor = reactor
        self._connections: list[Connection] = []
        self._waiting = bytearray()  # for the reader
        self._end: socket.socket | None = None
        self._watch: Watch | None = None

    def open(self) -> socket.socket:
        """A stream for the VM's reader; the reader before it, if there is one, finds the end of its own."""
        self._release()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._end, self._watch = ours, self._reactor.watch(ours.fileno(), self._ready)
        self.deliver(b"")
        self.balance()
        return theirs

    def add(self, connection: Connection) -> None:
        """A connection of this VM."""
        connection.line = self
        self._connections.append(connection)

    def drop(self, sessions: Sequence[Session | None]) -> None:
        """Sends connections away."""
        for connection in list(self._connections):
            if connection.session in sessions:
                connection.close()

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""
        if connection in self._connections:
            self._connections.remove(connection)
        self.deliver(self.port.closed(connection.session))
        self.balance()

    def completed(self) -> None:
        """The VM has moved: its old host has a while to close."""
        old = self.port.active if self.port.waits_for_the_old_host else None
        if old is not None:
            self._reactor.call_later(OLD_HOST_SECONDS, lambda: self.drop([old]))

    def deliver(self, data: bytes) -> None:
        """Bytes for the reader."""
        self._waiting += data
        while self._waiting and self._end is not None:
            try:
                del self._waiting[: self._end.send(self._waiting)]
            except BlockingIOError:
                return
            except OSError:  # the reader has gone; the next one gets the rest
                self._release()

    def balance(self) -> None:
        """Reads what can be passed on, and nothing else."""
        for connection in list(self._connections):
            held = connection.session is self.port.next and self.port.full
            connection.update(self._end is not None and len(self._waiting) < READ_SIZE and not held)
        if self._watch is not None:
            self._watch.update(readable=self._target() is not None, writable=bool(self._waiting))

    def close(self) -> None:
        """Ends the stream and every connection of the VM."""
        self._release()
        for connection in list(self._connections):
            connection.close()

    def _release(self) -> None:
        """There is no reader any more."""
        if self._end is not None and self._watch is not None:
            self._watch.close()
            self._end.close()
        self._end = self._watch = None

    def _target(self) -> Session | None:
        """Who can take bytes for the VM now."""
        target = self.port.writable
        return target if target is not None and target.queued < SEND_QUEUE else None

    def _ready(self, ready: int) -> None:
        self.deliver(b"")
        target = self._target()
        if target is not None and self._end is not None and ready & (READ | HANGUP):
            self._forward(self._end, target)
        elif ready & HANGUP:  # the reader has gone, and what it still says could not be passed on
            self._release()
        self.balance()

    def _forward(self, end: socket.socket, target: Session) -> None:
        try:
            data = end.recv(READ_SIZE)
        except BlockingIOError:
            return
        if data:
            target.send(data)
        else:
            self._release()
