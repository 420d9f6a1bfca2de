"""What carries the bytes of the link: a file descriptor and what has to be known about it.

The kinds are in modules of their own (`transport_virtio`, `transport_uart`, `transport_socket`), each a few lines.
"""

import os

from tether.link.limits import PORT, Limits

TYPE_CHECKING = False


class Transport:
    """An open file descriptor, made non-blocking, that the transport owns from now on.

    `name` is for messages.  `permanent`: the file descriptor stays good when the other end goes away and comes back
    (character devices); otherwise the end of the stream is the end of the transport.  `limits` are what an endpoint
    on this transport should be made with.  `pace`: seconds between reads, for devices that announce every few bytes.
    `piece`: the longest piece that a writev passes on whole, for devices that stop at a longer one; 0: any.
    """

    def __init__(
        self,
        fd: int,
        name: str,
        *,
        permanent: bool = False,
        limits: Limits = PORT,
        pace: float = 0.0,
        piece: int = 0,
    ) -> None:
        os.set_blocking(fd, False)
        self.fd, self.name, self.permanent, self.limits, self.pace = fd, name, permanent, limits, pace
        self.piece = piece

    def close(self) -> None:
        """Closes the file descriptor.  A second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def of_fd(fd: int, name: str = "") -> Transport:
    """A transport over a connected stream socket (one end of a socketpair, an inherited descriptor)."""
    return Transport(fd, name or f"file descriptor {fd}")
