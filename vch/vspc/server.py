"""The serial port endpoint: takes in the connections of hosts, and gives out one byte stream for each VM.

Everything happens in the reactor's thread (line.py has the sockets; concentrator.py a thread and what others call).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from vch.vspc.line import Connection, Line
from vch.vspc.port import Port
from vch.vspc.session import Abort, Begin, Complete, Event, Identified, Peer, Received, Session
from vch.vspc.telnet import VspcError

if TYPE_CHECKING:
    from tether.link.reactor import Reactor, Timer

MOST_CONNECTIONS = 4096
MOST_COMPLAINTS = 10
ACCEPT_AGAIN_SECONDS = 1.0  # when descriptors are short: the listener stays readable and would be tried without end

OnVm = Callable[[str, str], None]


class Server:
    """See the module.

    service  the port URI that VMs are configured with; connections for another one are not served
    on_vm    called with UUID (digits only) and name of each VM that was not known yet.  Its connection is kept, and
             not read, until `open` is called, then or later; `forget` sends it away
    """

    def __init__(self, reactor: Reactor, listener: socket.socket, service: str, on_vm: OnVm) -> None:
        """Owns `listener`."""
        self._reactor, self._listener, self._service, self._on_vm = reactor, listener, service, on_vm
        listener.setblocking(False)
        self._watch = reactor.watch(listener.fileno(), self._accept)
        self._lines: dict[str, Line] = {}
        self._connections: set[Connection] = set()
        self._again: Timer | None = None
        self.complaints: list[str] = []
        """The last few, for whoever looks why a VM is silent."""

    def close(self) -> None:
        """Ends everything."""
        self._watch.close()
        if self._again is not None:
            self._again.cancel()
        self._listener.close()
        for connection in list(self._connections):
            connection.close()
        for line in list(self._lines.values()):
            line.close()

    def open(self, uuid: str) -> socket.socket | None:
        """The stream of this VM's serial port, the caller's to close; None if the VM has not come yet.

        An earlier one ends.  After it was closed another one may be opened: the VM does not notice.
        """
        line = self._lines.get(uuid)
        return line.open() if line is not None else None

    def forget(self, uuid: str) -> None:
        """This VM is gone for good."""
        line = self._lines.pop(uuid, None)
        if line is not None:
            line.close()

    def event(self, connection: Connection, event: Event) -> None:
        """Something that a host has said.  Raises VspcError."""
        line = connection.line
        if isinstance(event, Peer):
            self._peer(connection, event)
        elif isinstance(event, Identified):
            if line is None:
                self._identified(connection, event)
        elif line is not None:
            self._moved(line, connection.session, event)
        elif not isinstance(event, Received):
            raise VspcError("vMotion", "host", "of a VM that it has not named")

    def ended(self, connection: Connection, complaint: str) -> None:
        """A connection is closed."""
        self._connections.discard(connection)
        if complaint:
            self._complain(complaint)
        if connection.line is not None:
            connection.line.lost(connection)

    def _accept(self, _ready: int) -> None:
        try:
            end, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # it has gone again
            return
        except OSError as error:
            self._complain(f"serial port: accept: {error.strerror}")
            self._watch.update(readable=False, writable=False)
            self._again = self._reactor.call_later(ACCEPT_AGAIN_SECONDS, self._listen)
            return
        if len(self._connections) >= MOST_CONNECTIONS:
            end.close()
            return
        self._connections.add(Connection(self._reactor, end, Session(self._service), self.event, self.ended))

    def _listen(self) -> None:
        self._watch.update(readable=True, writable=False)

    def _complain(self, complaint: str) -> None:
        self.complaints = [*self.complaints[1 - MOST_COMPLAINTS :], complaint]

    def _identified(self, connection: Connection, event: Identified) -> None:
        line = self._lines.get(event.uuid)
        if line is None:
            line = self._lines[event.uuid] = Line(self._reactor, Port(event.uuid, connection.session))
            line.add(connection)
            self._on_vm(event.uuid, event.name)
        elif not (line.port.moving and (line.port.active or line.port.next)):
            gone = line.port.replaced(connection.session)
            line.add(connection)
            line.drop(gone)
        # else: on its new host a VM may say who it is before it says that it is a peer

    def _peer(self, connection: Connection, event: Peer) -> None:
        for line in self._lines.values():
            if line.port.is_peer(event.claim):
                line.add(connection)
                line.drop([line.port.peer(connection.session)])
                return
        raise VspcError("vMotion", "host", "a VM with a secret that nobody was given")

    @staticmethod
    def _moved(line: Line, session: Session, event: Event) -> None:
        if isinstance(event, Received):
            line.deliver(line.port.received(session, event.data))
        elif isinstance(event, Begin):
            line.port.begin(session, event.sequence)
        elif isinstance(event, Complete):
            line.deliver(line.port.complete(session, event.sequence))
            line.completed()
        elif isinstance(event, Abort):
            line.drop([line.port.abort(session)])
