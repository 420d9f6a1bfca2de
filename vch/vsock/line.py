"""The link over vsock, as the I/O thread of a machine sees it (vch/machine/host_line.py has the other lines).

The guest connects, and connects again when it has to: each connection becomes the wire's next transport.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from tether.link.transport import of_fd
from vch.qemu.config import LINK_VSOCK_PORT, MachineConfig
from vch.vsock.device import Device
from vch.vsock.kernel import KernelLine, open_kernel_vsock
from vch.vsock.vhost_user import VhostUser

if TYPE_CHECKING:
    from tether.link.wire import Wire


def vsock_line(
    config: MachineConfig, control: socket.socket, ended: Callable[[], None]
) -> tuple[MachineConfig, VhostUserLine | KernelLine]:
    """The line for a machine whose link is vsock, and the machine's configuration with it; owns `control`.

    The host kernel's where there is one, else our own.  `ended` is called when the link will not come back.
    """
    held = open_kernel_vsock()
    if held is None:
        return config, VhostUserLine(control, ended)
    control.close()
    return config._replace(kernel_vsock=held.vsock), KernelLine(held, ended)


class VhostUserLine:
    """Our own device.  `ended` is called when QEMU is gone and all that the guest has sent has been passed on."""

    def __init__(self, control: socket.socket, ended: Callable[[], None]) -> None:
        """Owns `control`, our end of the socket that QEMU's chardev has the other one of."""
        self._control, self._ended = control, ended
        self._backend: VhostUser | None = None
        self._finished = False

    def serve(self, wire: Wire) -> None:
        """From now on the wire has a transport whenever the guest is connected."""

        def connected(far: socket.socket) -> None:
            wire.attach(of_fd(far.detach(), "vsock"))

        def gone() -> None:
            self._finished = True
            if wire.transport is None:
                self._ended()

        device = Device(wire.reactor, LINK_VSOCK_PORT, connected)
        self._backend = VhostUser(wire.reactor, self._control, device, gone)

    def answered(self) -> None:
        """Nothing follows from it."""

    def machine_ended(self) -> None:
        """The end of our socket to QEMU says so too, behind everything else."""

    def lost(self) -> bool:
        """The guest has closed the connection, or is gone."""
        return not self._finished

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()
        self._control.close()
