"""Reading one channel of a QEMU, an end of a socket pair, for as long as it lasts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

    from tether.link.reactor import Reactor

READ_SIZE = 64 << 10


def read_channel(
    reactor: Reactor, end: socket.socket, take: Callable[[bytes], None], ended: Callable[[], None]
) -> None:
    """Gives `take` what comes, and calls `ended` when no more can come; the end is not closed."""

    def ready(_conditions: int) -> None:
        try:
            data = end.recv(READ_SIZE)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if data:
            take(data)
            return
        watch.close()
        ended()

    watch = reactor.watch(end.fileno(), ready)
