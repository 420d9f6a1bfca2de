"""vsock: stream sockets between a VM and its host without a network (vsock(7)).

The VM can connect to the host or listen for it.  A connection ends when either side goes away, when the VM is moved
and when it is cloned; who connects or listens sees to the next one.
"""

import os
from _socket import (
    AF_VSOCK,
    SO_ERROR,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    VMADDR_CID_ANY,
    VMADDR_CID_HOST,
    socket,
)
from errno import EADDRINUSE, EINPROGRESS

from tether.link.errors import TransportError
from tether.link.limits import PORT
from tether.link.transport import Transport

HOST = VMADDR_CID_HOST
LOOPBACK = 1  # VMADDR_CID_LOCAL, linux/vm_sockets.h: this VM itself, where the kernel has vsock_loopback
# The kernel lets only the privileged connect from these (LAST_RESERVED_PORT, net/vmw_vsock/af_vsock.c): the other end
# can tell the agent from a process of the container.
LAST_PRIVILEGED_PORT = 1023
_FIRST_TRIED_PORT = 512  # the highest free one is taken; an old connection may hold its own for a while
_KIND = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK
_BACKLOG = 1  # there is one appliance


def start_connecting(cid: int, port: int) -> socket:
    """A socket that becomes writable when it is decided whether the other end is there; then call `connected`.

    Raises TransportError if that is clear at once.
    """
    near = _socket(f"{cid}:{port}")
    _bind_privileged(near, f"{cid}:{port}")
    error = near.connect_ex((cid, port))
    if error not in (0, EINPROGRESS):
        near.close()
        raise TransportError("connect to vsock", f"{cid}:{port}", os.strerror(error), "does the host listen there?")
    return near


def connected(near: socket, cid: int, port: int) -> Transport:
    """The transport that the connection has become.  Raises TransportError if it was refused."""
    error = near.getsockopt(SOL_SOCKET, SO_ERROR)
    if error:
        near.close()
        raise TransportError("connect to vsock", f"{cid}:{port}", os.strerror(error), "does the host listen there?")
    return Transport(near.detach(), f"vsock {cid}:{port}", limits=PORT)


def listen(port: int) -> socket:
    """A socket that becomes readable when somebody connects; then call `accept`.  Raises TransportError."""
    near = _socket(f"port {port}")
    try:
        near.bind((VMADDR_CID_ANY, port))
        near.listen(_BACKLOG)
    except OSError as error:
        near.close()
        raise TransportError("listen on vsock", f"port {port}", error.strerror or str(error)) from None
    return near


def accept(listener: socket, allowed: int = HOST) -> Transport | None:
    """The next connection, or None if there is none now; one from another CID than `allowed` is refused.

    A process of the container could connect as well, by loopback, and play the appliance.
    """
    while True:
        try:
            fd, (cid, port) = listener._accept()  # type: ignore[attr-defined]  # of _socket.socket, unknown to typeshed
        except BlockingIOError:
            return None
        if cid == allowed:
            return Transport(fd, f"vsock {cid}:{port}", limits=PORT)
        os.close(fd)


def _bind_privileged(near: socket, what: str) -> None:
    for port in range(LAST_PRIVILEGED_PORT, _FIRST_TRIED_PORT, -1):
        try:
            near.bind((VMADDR_CID_ANY, port))
        except OSError as error:
            if error.errno == EADDRINUSE:
                continue
            near.close()
            hint = "only the privileged may"
            raise TransportError("bind vsock", f"{what} from port {port}", error.strerror or str(error), hint) from None
        return
    near.close()
    raise TransportError("bind vsock", what, "no privileged port is free")


def _socket(what: str) -> socket:
    try:
        return socket(AF_VSOCK, _KIND)
    except OSError as error:
        hint = "the kernel needs CONFIG_VSOCKETS"
        raise TransportError("open vsock", what, error.strerror or str(error), hint) from None
