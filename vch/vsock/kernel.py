"""vsock by the host's kernel: /dev/vhost-vsock for QEMU, a listening AF_VSOCK socket for us (vsock(7), linux/vhost.h).

A guest is known by its CID, which the kernel gives to one machine only; so numbers are tried until one is free, and the
device that holds it is handed to QEMU.  The port is the kernel's choice: machines side by side need one each.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tether.link.transport import of_fd
from tether.link.transport_vsock import LAST_PRIVILEGED_PORT
from vch.errors import HostError
from vch.qemu.config import KernelVsock

if TYPE_CHECKING:
    from tether.link.reactor import Watch
    from tether.link.wire import Wire

DEVICE = Path("/dev/vhost-vsock")
_SET_GUEST_CID = 0x4008AF60  # VHOST_VSOCK_SET_GUEST_CID: _IOW(0xAF, 0x60, __u64)
_FIRST_CID, _LAST_CID = 3, 0x7FFFFFFF  # below are the hypervisor, loopback and host; above, signs are mistaken
_TRIES = 64  # of two thousand million numbers: a host that has none free is not ours to explain
_BACKLOG = 4


REMEDY = "use VCH_LINK=virtio-serial"


@dataclass(frozen=True)
class HeldVsock:
    """What QEMU is told, and what we listen on."""

    vsock: KernelVsock
    listener: socket.socket


def open_kernel_vsock(device: Path = DEVICE) -> HeldVsock | None:
    """The kernel's vsock, or None where it has none that can be used.  Raises HostError if no CID is free."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # not there, or not for us: the device of our own does the same
        return None
    try:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError:
        os.close(fd)
        return None
    try:
        listener.setblocking(False)
        listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listener.listen(_BACKLOG)
        cid = claim_cid(fd)
    except OSError as error:
        listener.close()
        os.close(fd)
        raise HostError("open vsock", str(device), error.strerror or str(error), REMEDY) from error
    return HeldVsock(KernelVsock(fd=fd, cid=cid, port=listener.getsockname()[1]), listener)


def claim_cid(fd: int, ioctl: Callable[[int, int, bytes], object] = fcntl.ioctl) -> int:
    """Has the device hold a CID that no other machine has.  Raises OSError."""
    for _ in range(_TRIES):
        cid = random.randint(_FIRST_CID, _LAST_CID)
        try:
            ioctl(fd, _SET_GUEST_CID, struct.pack("=Q", cid))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return cid
    raise OSError(errno.EADDRINUSE, "no CID is free")


class KernelLine:
    """The link over the kernel's vsock.  `ended` is called when there will be no connection any more."""

    def __init__(self, held: HeldVsock, ended: Callable[[], None]) -> None:
        """Owns what is held."""
        self._cid, self._listener, self._ended = held.vsock.cid, held.listener, ended
        self._device = held.vsock.fd  # until the end: QEMU gets its own descriptor of it
        self._wire: Wire | None = None
        self._watch: Watch | None = None
        self._over = False

    def serve(self, wire: Wire) -> None:
        """From now on the wire has a transport whenever the guest is connected."""
        self._wire = wire
        self._watch = wire.reactor.watch(self._listener.fileno(), self._connected)

    def answered(self) -> None:
        """Nothing follows from it."""

    def machine_ended(self) -> None:
        """The kernel has reset the connection, or does so now."""
        self._over = True
        if self._wire is not None and self._wire.transport is None:
            self._ended()

    def lost(self) -> bool:
        """The guest has closed the connection, or is gone."""
        return not self._over

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._listener.close()
        if self._device >= 0:
            os.close(self._device)
            self._device = -1

    def _connected(self, _ready: int) -> None:
        try:
            near, (cid, port) = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        if cid == self._cid and port <= LAST_PRIVILEGED_PORT and self._wire is not None:
            self._wire.attach(of_fd(near.detach(), "vsock"))
        else:
            near.close()  # another machine, a process of the host, or of the container
