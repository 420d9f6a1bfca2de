"""Unix and TCP sockets, for links that are not between a VM and its hypervisor (unix(7), tcp(7)).

An address is "unix:PATH" or "tcp:ADDRESS:PORT"; ADDRESS is numeric, an IPv6 one in brackets: a name would have to be
looked up, and that blocks.  A TCP link is neither encrypted nor authenticated: loopback, or inside a tunnel.
"""

import os
from _socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_TCP,
    SO_ERROR,
    SO_KEEPALIVE,
    SO_REUSEADDR,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    TCP_USER_TIMEOUT,
    socket,
)
from errno import EAGAIN, EINPROGRESS

from tether.link.errors import TransportError
from tether.link.limits import PORT
from tether.link.transport import Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    Address = str | tuple[str, int]

_KIND = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK
_BACKLOG = 1  # a link has two ends
_PRIVATE = 0o177  # umask of a Unix socket: who can connect can play the appliance
_SILENCE_MS = 30_000  # what a TCP peer leaves unacknowledged so long is gone; streams resume over the next connection


def start_connecting(address: str) -> socket:
    """A socket that becomes writable when it is decided whether somebody listens; then call `connected`.

    Raises TransportError if that is clear at once.
    """
    family, place = parse(address)
    near = socket(family, _KIND)
    error = near.connect_ex(place)
    if error == EAGAIN:  # Unix sockets only: the backlog is full
        near.close()
        raise TransportError("connect to", address, "the listener is busy", "it takes one link at a time")
    if error not in (0, EINPROGRESS):
        near.close()
        raise TransportError("connect to", address, os.strerror(error), "does anybody listen there?")
    return near


def connected(near: socket, address: str) -> Transport:
    """The transport that the connection has become.  Raises TransportError if it was refused."""
    error = near.getsockopt(SOL_SOCKET, SO_ERROR)
    if error:
        near.close()
        raise TransportError("connect to", address, os.strerror(error), "does anybody listen there?")
    return _transport(near, address)


def listen(address: str) -> socket:
    """A socket that becomes readable when somebody connects; then call `accept`.  Raises TransportError."""
    family, place = parse(address)
    near = socket(family, _KIND)
    mask = os.umask(_PRIVATE) if family == AF_UNIX else None
    try:
        if family != AF_UNIX:
            near.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        near.bind(place)
        near.listen(_BACKLOG)
    except OSError as error:
        near.close()
        raise TransportError("listen on", address, error.strerror or str(error)) from None
    finally:
        if mask is not None:
            os.umask(mask)
    return near


def accept(listener: socket, address: str) -> Transport | None:
    """The next connection, or None if there is none now."""
    try:
        fd, _peer = listener._accept()  # type: ignore[attr-defined]  # of _socket.socket, unknown to typeshed
    except BlockingIOError:
        return None
    return _transport(socket(fileno=fd), address)


def parse(address: str) -> "tuple[int, Address]":
    """Family and place.  Raises TransportError for what is no address."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        return AF_UNIX, rest
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and host and port.isdecimal() and int(port) < 1 << 16:
        bracketed = host.startswith("[") and host.endswith("]")
        return (AF_INET6, (host[1:-1], int(port))) if bracketed else (AF_INET, (host, int(port)))
    hint = 'write "unix:PATH", "tcp:1.2.3.4:PORT" or "tcp:[::1]:PORT"'
    raise TransportError("understand address", address, "not of a known form", hint)


def _transport(near: socket, address: str) -> Transport:
    if near.family != AF_UNIX:
        near.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)  # frames are whole when they are written
        near.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
        near.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, _SILENCE_MS)
    return Transport(near.detach(), address, limits=PORT)
