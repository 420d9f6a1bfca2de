"""Opening the link: to the host by the line that the kernel command line names, or to ourselves.

To ourselves if the kernel command line names a source of the spec; and if it names no line either, the usual one does
not appear soon, and a spec is where hypervisors leave such things (tether/sources/search.py).  With an appliance there,
none of that is looked at.

A line lasts as long as the VM.  That of a virtio-serial port or a UART is a descriptor that stays good when the host
goes away and comes back; that of vsock (tether/vsockline.py) is got anew each time.
"""

from tether.faults import TetherError
from tether.kernel.kernelargs import DEFAULT_LINK, UART, VIRTIO, KernelArguments
from tether.kernel.uevents import DEADLINE_S, wait_for
from tether.link.errors import TransportError
from tether.link.transport import Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.link.limits import Limits
    from tether.link.reactor import Reactor
    from tether.link.wire import Wire
    from tether.vsockline import VsockLine


LOOK_AFTER_S = 3.0  # a port that is there appears within one; its absence is known by nothing but time


class FixedLine:
    """A line whose transport is open already, and stays."""

    def __init__(self, transport: Transport) -> None:
        self.limits: Limits = transport.limits
        self.transport = transport

    def serve(self, wire: "Wire") -> None:
        """From now on the wire has a transport whenever there is one."""
        wire.attach(self.transport)

    def lost(self, reason: str) -> None:
        """The wire has lost its transport.  This one is lost for good: a link to ourselves has no host to come back."""


def open_link(arguments: KernelArguments) -> "tuple[FixedLine | VsockLine, Transport | None]":
    """The line; and its other end too, if this VM brings its own spec.  Raises TetherError."""
    if arguments.spec:
        return _to_ourselves()
    kind, _, address = arguments.link.partition(":")
    if kind == VIRTIO:
        from tether.link.transport_virtio import open_virtio_port

        what = f"virtio-serial port {address}"
        if arguments.link == DEFAULT_LINK:
            try:
                return FixedLine(_await(what, lambda: open_virtio_port(address), LOOK_AFTER_S)), None
            except TetherError:
                from tether.sources.search import there_is_one

                if there_is_one():
                    return _to_ourselves()
        return FixedLine(_await(what, lambda: open_virtio_port(address))), None
    if kind == UART:
        from tether.link.transport_uart import open_uart

        return FixedLine(_await(f"serial port {address}", lambda: open_uart(address))), None
    from tether.vsockline import vsock_line

    return vsock_line(address), None


def take_care(reactor: "Reactor", far_end: Transport, source: str) -> None:
    """Has the other end of a link to ourselves do the appliance's part.  Raises TetherError for a bad spec."""
    from tether.sources.alone import Caretaker, find_spec

    Caretaker(reactor, far_end, find_spec(source))  # the reactor keeps it


def _to_ourselves() -> "tuple[FixedLine, Transport]":
    from tether.sources.alone import link_to_self

    near, far = link_to_self()
    return FixedLine(near), far


def _await(what: str, opened: "Callable[[], Transport]", seconds: float = DEADLINE_S) -> Transport:
    """The transport, as soon as its device is there.  Raises TetherError that says why it cannot be opened."""
    reason = [""]

    def probe() -> Transport | None:
        try:
            return opened()
        except TransportError as error:
            reason[0] = str(error)
            return None

    return wait_for(what, probe, lambda: reason[0], seconds)
