"""How the I/O thread of a machine comes to its link, and comes to it again when it was cut.

    inherited socket pair   there from the start, ends with QEMU
    QEMU listens            dialled, and again whenever the connection ends while QEMU lives: the link survives whoever
                            holds this end of it
    vsock                   the guest connects, by a device of ours or the host kernel's (vch/vsock)

A line is served from the I/O thread only.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tether.link.endpoint import LIVE
from tether.link.transport import of_fd
from vch.qemu.config import LinkKind, MachineConfig

if TYPE_CHECKING:
    from tether.link.transport import Transport
    from tether.link.wire import Wire

AGAIN_SECONDS = 0.02  # QEMU listens within this after its start; and a host that was cut off has bytes waiting for it

# When a connection ends while QEMU 7.2 writes to it, the port can stay throttled (virtio-console.c: the write that
# fails comes back from the handler of the end, and throttles what that has just released).  It then carries nothing
# more from the guest, over no later connection; an end of a connection without a write under way heals it.  So who gets
# no answer hangs up, gently, and dials again; with doubling patience, because a guest that boots cannot answer yet.
FIRST_PATIENCE_SECONDS, LAST_PATIENCE_SECONDS = 0.5, 16.0


class HostLine(Protocol):
    """What the driver asks of a line."""

    def serve(self, wire: Wire) -> None:
        """From now on the wire has a transport whenever there is one."""

    def answered(self) -> None:
        """The guest is there."""

    def machine_ended(self) -> None:
        """QEMU has ended."""

    def lost(self) -> bool:
        """The wire has lost its transport.  False if there will not be another one."""

    def close(self) -> None:
        """Gives back what it holds."""


class InheritedLine:
    """Our end of a socket pair."""

    def __init__(self, end: socket.socket) -> None:
        """Owns `end`."""
        self._end = end

    def serve(self, wire: Wire) -> None:
        wire.attach(of_fd(self._end.detach(), "link"))

    def answered(self) -> None:
        """Nothing follows from it."""

    def machine_ended(self) -> None:
        """The socket pair says so too, behind everything else."""

    def lost(self) -> bool:
        return False

    def close(self) -> None:
        self._end.close()


class DialledLine:
    """A Unix socket that QEMU listens on.  `alive` says whether QEMU runs, `ended` is called when it is of no use."""

    def __init__(self, path: Path, alive: Callable[[], bool], ended: Callable[[], None]) -> None:
        self._path, self._alive, self._ended = path, alive, ended
        self._wire: Wire | None = None
        self._patience = FIRST_PATIENCE_SECONDS

    def serve(self, wire: Wire) -> None:
        self._wire = wire
        self._dial()

    def answered(self) -> None:
        self._patience = FIRST_PATIENCE_SECONDS

    def machine_ended(self) -> None:
        """The next dial finds it out."""

    def lost(self) -> bool:
        assert self._wire is not None
        # QEMU takes one connection at a time and has to see the end of the last one first.
        self._wire.reactor.call_later(AGAIN_SECONDS, self._dial)
        return True

    def close(self) -> None:
        self._wire = None

    def _dial(self) -> None:
        if self._wire is None:
            return
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            end.connect(str(self._path))  # does not wait: it queues us, or says that nobody listens
        except OSError:
            end.close()
            if self._alive():
                self._wire.reactor.call_later(AGAIN_SECONDS, self._dial)
            else:
                self._ended()
            return
        transport = of_fd(end.detach(), "link")
        self._wire.attach(transport)
        self._wire.reactor.call_later(self._patience, lambda: self._check(transport))

    def _check(self, transport: Transport) -> None:
        """Has the guest answered?"""
        wire = self._wire
        if wire is None or wire.transport is not transport or wire.endpoint.phase == LIVE:
            return
        self._patience = min(2 * self._patience, LAST_PATIENCE_SECONDS)
        # QEMU sees the end of what it reads, not of what it writes, and closes; that is what `lost` will hear of.
        with socket.socket(fileno=os.dup(transport.fd)) as end:
            end.shutdown(socket.SHUT_WR)


def new_line(
    config: MachineConfig, link_end: socket.socket, alive: Callable[[], bool], ended: Callable[[], None]
) -> tuple[MachineConfig, HostLine]:
    """The line of a machine, and what QEMU is told, in which the line may have had a say.

    `link_end` is our end of the link's channel.  `alive` says whether QEMU runs, `ended` is called when the line is of
    no use any more.
    """
    if config.link is LinkKind.VSOCK:
        from vch.vsock.line import vsock_line  # few machines need it

        return vsock_line(config, link_end, ended)
    if config.link_path is None:
        return config, InheritedLine(link_end)
    link_end.close()
    return config, DialledLine(config.link_path, alive, ended)
