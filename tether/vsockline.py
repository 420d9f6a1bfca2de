"""A link over vsock: connections that end (the appliance goes, the VM is moved or cloned) and are made again.

Imported late: only VMs whose link it is need it.  Nothing here blocks: the boot goes on while nobody is there yet, and
what tether has to say waits in the endpoint's rings.
"""

from tether.faults import TetherError
from tether.kernel.console import say
from tether.kernel.modules import load_on_demand
from tether.link import transport_vsock
from tether.link.errors import TransportError
from tether.link.limits import PORT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from tether.link.reactor import Timer, Watch
    from tether.link.transport import Transport
    from tether.link.wire import Wire

AGAIN_S = 0.5  # between attempts: an appliance that starts anew finds its VMs soon, and an absent one costs little
_MODULES = ("vmw_vsock_virtio_transport", "vmw_vsock_vmci_transport")
_LISTEN = "listen"


def vsock_line(address: str) -> "VsockLine":
    """The line for "CID:PORT" or "listen:PORT".  Raises TetherError."""
    where, _, port = address.rpartition(":")
    if not port.isdecimal() or not (where == _LISTEN or where.isdecimal()):
        raise TetherError("kernel command line", f"tether.link=vsock:{address}: no such address",
                          hint="known are vsock:CID:PORT and vsock:listen:PORT")
    load_on_demand(*_MODULES)
    return Listening(int(port)) if where == _LISTEN else Connecting(int(where), int(port))


class Connecting:
    """Connects, and again whenever the connection is lost."""

    limits = PORT

    def __init__(self, cid: int, port: int) -> None:
        self._cid, self._port = cid, port
        self._wire: Wire | None = None
        self._near: socket | None = None
        self._watch: Watch | None = None
        self._timer: Timer | None = None
        self._said = ""

    def serve(self, wire: "Wire") -> None:
        """From now on the wire has a transport whenever there is one."""
        self._wire = wire
        self._try()

    def lost(self, _reason: str) -> None:
        """The wire has lost its transport."""
        self._later()

    def _try(self) -> None:
        assert self._wire is not None
        self._timer = None
        try:
            self._near = transport_vsock.start_connecting(self._cid, self._port)
        except TransportError as error:
            self._failed(error)
            return
        self._watch = self._wire.reactor.watch(self._near.fileno(), self._decided, readable=False, writable=True)

    def _decided(self, _ready: int) -> None:
        assert self._wire is not None
        near, self._near, watch, self._watch = self._near, None, self._watch, None
        assert near is not None
        assert watch is not None
        watch.close()
        try:
            transport = transport_vsock.connected(near, self._cid, self._port)
        except TransportError as error:
            self._failed(error)
            return
        self._said = ""
        self._wire.attach(transport)

    def _failed(self, error: TransportError) -> None:
        """Says each reason once: a VM that waits for ever must not be silent about it."""
        if str(error) != self._said:
            self._said = str(error)
            say(f"tether: open link: {error}")
        self._later()

    def _later(self) -> None:
        assert self._wire is not None
        if self._timer is None:
            self._timer = self._wire.reactor.call_later(AGAIN_S, self._try)


class Listening:
    """Waits for the host to connect.  A new connection replaces the old one: the host knows better that it has gone."""

    limits = PORT

    def __init__(self, port: int) -> None:
        try:
            self._listener = transport_vsock.listen(port)
        except TransportError as error:
            raise TetherError(error.object, error.text, hint=error.hint) from None

    def serve(self, wire: "Wire") -> None:
        """From now on the wire has a transport whenever there is one."""

        def connected(_ready: int) -> None:
            transport: Transport | None = transport_vsock.accept(self._listener)
            if transport is not None:
                wire.attach(transport)

        wire.reactor.watch(self._listener.fileno(), connected)

    def lost(self, _reason: str) -> None:
        """The wire has lost its transport; the listener is still there."""


VsockLine = Connecting | Listening
