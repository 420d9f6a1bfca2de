"""Opening the link: to the host by the virtio-serial port that the kernel command line names, or to ourselves."""

from tether.kernelargs import KernelArguments
from tether.link.errors import TransportError
from tether.link.transport import Transport
from tether.link.transport_virtio import open_virtio_port
from tether.uevents import wait_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.link.reactor import Reactor


def open_link(arguments: KernelArguments) -> tuple[Transport, Transport | None]:
    """The transport; and its other end too, if this VM brings its own spec.  Raises TetherError."""
    if arguments.spec:
        from tether.alone import link_to_self

        return link_to_self()
    return _open_port(arguments.port), None


def take_care(reactor: "Reactor", far_end: Transport, source: str) -> None:
    """Has the other end of a link to ourselves do the appliance's part.  Raises TetherError for a bad spec."""
    from tether.alone import Caretaker, find_spec

    Caretaker(reactor, far_end, find_spec(source))  # the reactor keeps it


def _open_port(port: str) -> Transport:
    """The transport, awaited.  Raises TetherError that says why it cannot be opened."""
    reason = [""]

    def probe() -> Transport | None:
        try:
            return open_virtio_port(port)
        except TransportError as error:
            reason[0] = str(error)
            return None

    return wait_for(f"virtio-serial port {port}", probe, lambda: reason[0])
