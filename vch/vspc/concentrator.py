"""The serial port endpoint as an appliance uses it: a thread that listens, and a line for each machine's driver.

    with Concentrator(socket.create_server(("192.0.2.1", 2377)), "vch") as concentrator:
        line = concentrator.line("5020a48e-597c-3f21-116d-5cab6a0f7c01")   # VirtualMachineConfigInfo.instanceUuid
        line.serve(Wire(reactor, Endpoint(APPLIANCE, UART), on_event))     # a HostLine, as of any machine

The VM's serial port has the network backing: direction "server", port URI "vch", and the concentrator's address as the
URI of the vSPC (telnet://192.0.2.1:2377).  It may connect before or after its line is served, go away, come back, move
to another host: the wire keeps its transport, and the link goes on over it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from tether.link.limits import UART
from tether.link.reactor import Reactor
from tether.link.transport import Transport
from vch.vspc.server import Server
from vch.vspc.session import plain_uuid

if TYPE_CHECKING:
    from types import TracebackType

    from tether.link.wire import Wire


class Concentrator:
    """See the module.  Its methods may be called from any thread."""

    def __init__(self, listener: socket.socket, service: str) -> None:
        """Owns `listener`; VMs that are configured with another port URI than `service` are refused."""
        self.address = listener.getsockname()
        self._reactor = Reactor()
        self._server = Server(self._reactor, listener, service, self._came)
        self._lines: dict[str, ConcentratorLine] = {}
        self._names: dict[str, str] = {}  # of every VM that has come
        self._lock = threading.Lock()  # between `call` and the end of the reactor
        self._closed = self._ending = False
        self._thread = threading.Thread(target=self._run, name="serial ports", daemon=True)
        self._thread.start()

    def __enter__(self) -> Concentrator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def complaints(self) -> list[str]:
        """Why connections were sent away, the last few."""
        return self._server.complaints

    @property
    def waiting(self) -> dict[str, str]:
        """UUID (digits only) and name of the VMs that are connected and that no line was served for."""
        return {uuid: name for uuid, name in list(self._names.items()) if uuid not in self._lines}

    def line(self, uuid: str) -> ConcentratorLine:
        """The line to the VM with this UUID, in any notation."""
        return ConcentratorLine(self, plain_uuid(uuid))

    def close(self) -> None:
        """Ends every connection and the thread.  A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._reactor.post(self._end)
        self._thread.join()
        self._reactor.close()

    def call(self, what: Callable[[], None]) -> None:
        """Has the thread call this, unless it has ended."""
        with self._lock:
            if not self._closed:
                self._reactor.post(what)

    # in the thread

    def want(self, uuid: str, line: ConcentratorLine) -> None:
        """From now on this line gets the VM's stream."""
        self._lines[uuid] = line
        self._hand_over(uuid)

    def forget(self, uuid: str, line: ConcentratorLine) -> None:
        """Nobody serves this VM any more."""
        if self._lines.get(uuid) is line:
            del self._lines[uuid]
            self._names.pop(uuid, None)
            self._server.forget(uuid)

    def _came(self, uuid: str, name: str) -> None:
        self._names[uuid] = name
        self._hand_over(uuid)

    def _hand_over(self, uuid: str) -> None:
        line = self._lines.get(uuid)
        stream = self._server.open(uuid) if line is not None else None
        if line is not None and stream is not None:
            line.take(stream)

    def _run(self) -> None:
        while not self._ending:
            self._reactor.run_once()
        self._server.close()

    def _end(self) -> None:
        self._ending = True


class ConcentratorLine:
    """A machine's way to its link (vch.machine.host_line.HostLine); comes from `Concentrator.line`."""

    def __init__(self, concentrator: Concentrator, uuid: str) -> None:
        self.uuid = uuid
        self._concentrator = concentrator
        self._wire: Wire | None = None
        self._lock = threading.Lock()  # after `close` the wire's reactor may be gone

    def serve(self, wire: Wire) -> None:
        """From now on the wire has a transport whenever the VM is there."""
        self._wire = wire
        self._concentrator.call(lambda: self._concentrator.want(self.uuid, self))

    def answered(self) -> None:
        """Nothing follows from it."""

    def machine_ended(self) -> None:
        """The host says so by its telnet connection."""

    def lost(self) -> bool:
        """The wire has lost its transport: asks for another one."""
        self._concentrator.call(lambda: self._concentrator.want(self.uuid, self))
        return True

    def close(self) -> None:
        """The VM's connection ends too."""
        with self._lock:
            self._wire = None
        self._concentrator.call(lambda: self._concentrator.forget(self.uuid, self))

    def take(self, stream: socket.socket) -> None:
        """A stream, from the concentrator's thread."""
        with self._lock:
            if self._wire is None:
                stream.close()
            else:
                self._wire.reactor.post(lambda: self._attach(stream))

    def _attach(self, stream: socket.socket) -> None:
        """In the wire's thread."""
        if self._wire is None:
            stream.close()
        else:
            self._wire.attach(Transport(stream.detach(), f"serial port of {self.uuid}", limits=UART))
