"""The channels between us and one QEMU: for as long as they last, and without names."""

from __future__ import annotations

import os
import socket
from io import FileIO
from typing import TYPE_CHECKING, NamedTuple

from vch.qemu.config import Channels

if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.link.reactor import Reactor

READ_SIZE = 64 << 10


class Ends(NamedTuple):
    """All channels' ends of one side."""

    qmp: socket.socket
    link: socket.socket
    console: FileIO

    @property
    def channels(self) -> Channels:
        """Their descriptors."""
        return Channels(self.qmp.fileno(), self.link.fileno(), self.console.fileno())

    def close(self) -> None:
        """Gives them back; a second call does nothing."""
        for end in (self.qmp, self.link, self.console):
            end.close()


def open_channels() -> tuple[Ends, Ends]:
    """Ours, which never block, and QEMU's.

    The console is a pipe.  QEMU writes the bytes of a serial line one by one, and of single bytes a socket pair takes
    some 280: what a guest says at its end, while this host is busy with others, would be lost.  A pipe takes 65,536.
    """
    qmp, link = channel(), channel()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reading, False)
    return Ends(qmp[0], link[0], FileIO(reading, "rb")), Ends(qmp[1], link[1], FileIO(writing, "wb"))


def channel() -> tuple[socket.socket, socket.socket]:
    """Two ends of a stream: ours, which never blocks, and QEMU's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    return ours, theirs


def read_channel(
    reactor: Reactor, end: socket.socket | FileIO, take: Callable[[bytes], None], ended: Callable[[], None]
) -> None:
    """Gives `take` what comes, and calls `ended` when no more can come; the end is not closed."""

    def ready(_conditions: int) -> None:
        try:
            data = os.read(end.fileno(), READ_SIZE)
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
