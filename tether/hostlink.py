"""Opening the link to the host: the virtio-serial port that the kernel command line names."""

from tether.link.errors import TransportError
from tether.link.transport import Transport
from tether.link.transport_virtio import open_virtio_port
from tether.uevents import wait_for


def open_link(port: str) -> Transport:
    """The transport, awaited.  Raises TetherError that says why it cannot be opened."""
    reason = [""]

    def probe() -> Transport | None:
        try:
            return open_virtio_port(port)
        except TransportError as error:
            reason[0] = str(error)
            return None

    return wait_for(f"virtio-serial port {port}", probe, lambda: reason[0])


