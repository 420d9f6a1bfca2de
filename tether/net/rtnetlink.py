"""Configuring the network by netlink messages packed by hand: rtnetlink(7), linux/rtnetlink.h, linux/if_addr.h.

pyroute2 is the library for it, and costs 300 million instructions to import (2.7 s of a cold boot without KVM); the
messages of a static configuration cost 2.  What changes while the container runs uses these too: one way of doing it,
judged by pyroute2 in the tests (docs/architecture.md has the numbers).
Numbers are in the machine's byte order, addresses in the network's.
"""

import os
import struct
from _socket import AF_INET, AF_INET6, AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, inet_pton, socket

from tether.faults import TetherError
from tether.link.record import Record
from tether.spec import Route

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length type flags sequence port
LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family type index flags change
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family prefix flags scope index
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family dst_len src_len tos table protocol scope type flags
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length type

_NETLINK_ROUTE = 0
_NLMSG_ERROR = 2
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 20, 24
REQUEST_ACK = 0x1 | 0x4  # NLM_F_REQUEST | NLM_F_ACK
_CREATE_NEW = 0x400 | 0x200  # NLM_F_CREATE | NLM_F_EXCL
IFF_UP = 1
_IFLA_ADDRESS, _IFLA_MTU = 1, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFA_F_NODAD = 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_TABLE_MAIN, _PROTOCOL_BOOT, _SCOPE_UNIVERSE, _SCOPELINK, _TYPE_UNICAST = 254, 3, 0, 253, 1
_RTNH_F_ONLINK = 4  # the gateway is on this link although no address of ours says so
DEFAULT_ROUTE = "default"
_REPLY_BYTES = 65536
# SOL_SOCKET, SO_RCVTIMEO, struct timeval.  It answers at once, if not another interface is just being registered.
RECEIVE_TIMEOUT = (1, 20, struct.pack("ll", 30, 0))


class Request(Record):
    """One change of the network: `what` says it in words, for the error."""

    what: str
    kind: int
    flags: int
    body: bytes


def link_up(index: int, name: str, mtu: int = 0) -> Request:
    """Switches an interface on, and sets its MTU if one is given."""
    attributes = _attribute(_IFLA_MTU, struct.pack("=I", mtu)) if mtu else b""
    what = f"switch on {name}" + (f" with MTU {mtu}" if mtu else "")
    return Request(what=what, kind=RTM_NEWLINK, flags=REQUEST_ACK,
                   body=LINK.pack(0, 0, index, IFF_UP, IFF_UP) + attributes)


def await_link(index: int, name: str) -> Request:
    """Changes nothing; it is answered when the kernel is done with what it is at, above all with a new interface.

    Whoever registers one has rtnl_lock all the time, and what belongs to it, such as its folders in /proc/sys/net, is
    made last (the NETDEV_REGISTER notifiers in register_netdevice(), net/core/dev.c).
    """
    return Request(what=f"wait for {name}", kind=RTM_NEWLINK, flags=REQUEST_ACK, body=LINK.pack(0, 0, index, 0, 0))


def set_mac(index: int, name: str, mac: str) -> Request:
    """Gives an interface another MAC address: a clone has its template's.  It may be on.  Raises as `parse_mac`."""
    return Request(what=f"MAC address {mac} on {name}", kind=RTM_NEWLINK, flags=REQUEST_ACK,
                   body=LINK.pack(0, 0, index, 0, 0) + _attribute(_IFLA_ADDRESS, parse_mac(mac)))


def add_address(index: int, name: str, cidr: str, nodad: bool = True) -> Request:
    """Gives an interface an address in CIDR notation.  Raises TetherError if it is none.

    `nodad`: an IPv6 address is usable at once, because whoever gave it knows that nobody else has it.
    """
    family, address, prefix = parse_cidr(cidr)
    attributes = _attribute(_IFA_LOCAL, address) + _attribute(_IFA_ADDRESS, address)
    flags = 0
    if family == AF_INET6:
        flags = _IFA_F_NODAD if nodad else 0
    elif prefix < 31:  # RFC 3021: a /31 has no broadcast address
        attributes += _attribute(_IFA_BROADCAST, broadcast(address, prefix))
    return Request(what=f"address {cidr} on {name}", kind=RTM_NEWADDR, flags=REQUEST_ACK | _CREATE_NEW,
                   body=_ADDRESS.pack(family, prefix, flags, _SCOPE_UNIVERSE, index) + attributes)


def add_route(index: int, name: str, route: Route, on_link: bool = False) -> Request:
    """Sends what goes to `route.destination` over this interface.  Raises TetherError if something is no address.

    `on_link`: the gateway is reachable on this link although it is in the network of none of our addresses.
    """
    what = f"route to {route.destination}" + (f" by {route.gateway}" if route.gateway else "") + f" on {name}"
    attributes, family, gateway = _attribute(_RTA_OIF, struct.pack("=I", index)), 0, b""
    if route.gateway:
        family, gateway = parse_address(route.gateway)
        attributes += _attribute(_RTA_GATEWAY, gateway)
    length = 0
    if route.destination != DEFAULT_ROUTE:
        kind, destination, length = parse_cidr(route.destination)
        if family not in (0, kind):
            raise TetherError(what, "destination and gateway are of different families")
        family = kind
        attributes += _attribute(_RTA_DST, network_of(destination, length)) if length else b""
    elif not gateway:
        raise TetherError(what, "has no gateway", hint="write 0.0.0.0/0 or ::/0 for a default route without one")
    if route.metric:
        attributes += _attribute(_RTA_PRIORITY, struct.pack("=I", route.metric))
    if route.source:
        attributes += _attribute(_RTA_PREFSRC, parse_address(route.source)[1])
    scope = _SCOPELINK if family == AF_INET and not gateway else _SCOPE_UNIVERSE
    head = _ROUTE.pack(family, length, 0, 0, _TABLE_MAIN, _PROTOCOL_BOOT, scope, _TYPE_UNICAST,
                       _RTNH_F_ONLINK if on_link else 0)
    return Request(what=what, kind=RTM_NEWROUTE, flags=REQUEST_ACK | _CREATE_NEW, body=head + attributes)


def parse_mac(mac: str) -> bytes:
    """A MAC address ("02:00:00:00:00:01").  Raises TetherError if it is none that an interface can have."""
    try:
        address = bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        address = b""
    if len(address) != 6 or address[0] & 1:  # the lowest bit says: a group (IEEE 802, 8.2)
        raise TetherError("spec.network", f"{mac!r} is not the MAC address of an interface",
                          hint="write it like 02:00:00:00:00:01")
    return address


def parse_cidr(cidr: str) -> tuple[int, bytes, int]:
    """(family, address, prefix length) of "10.0.2.15/24"."""
    text, slash, length = cidr.partition("/")
    family, address = parse_address(text)
    if not slash or not length.isdigit() or int(length) > 8 * len(address):
        raise TetherError("spec.network", f"{cidr!r} is not an address with a prefix length",
                          hint="write it like 10.0.2.15/24")
    return family, address, int(length)


def parse_address(text: str) -> tuple[int, bytes]:
    """(family, address) of an IPv4 or IPv6 address."""
    family = AF_INET6 if ":" in text else AF_INET
    try:
        return family, inet_pton(family, text)
    except OSError as error:
        raise TetherError("spec.network", f"{text!r} is not an address") from error


def network_of(address: bytes, prefix: int) -> bytes:
    """An address with the bits after its prefix cleared."""
    bits = 8 * len(address) - prefix
    return (int.from_bytes(address, "big") >> bits << bits).to_bytes(len(address), "big")


def broadcast(address: bytes, prefix: int) -> bytes:
    """The broadcast address of an IPv4 network."""
    host_bits = (1 << (32 - prefix)) - 1
    return (int.from_bytes(address, "big") | host_bits).to_bytes(4, "big")


def packed(request: Request, sequence: int) -> bytes:
    """The message for the kernel."""
    return _HEADER.pack(_HEADER.size + len(request.body), request.kind, request.flags, sequence, 0) + request.body


def replies(data: bytes) -> list[tuple[int, int]]:
    """(sequence number, errno or 0) of every acknowledgement in what the kernel sent."""
    found = []
    while len(data) >= _HEADER.size:
        length, kind, _, sequence, _ = _HEADER.unpack_from(data)
        if kind == _NLMSG_ERROR:
            found.append((sequence, -struct.unpack_from("=i", data, _HEADER.size)[0]))
        data = data[max(_aligned(length), _HEADER.size):]
    return found


def carry_out(requests: list[Request]) -> None:
    """Sends all of them at once and waits for what the kernel says.  Raises TetherError for the first that failed."""
    for request, failure in asked(requests):
        if failure:
            raise TetherError(request.what, os.strerror(failure), failure)


def asked(requests: list[Request]) -> list[tuple[Request, int]]:
    """What the kernel says to each: errno or 0, in the order of its answers."""
    if not requests:
        return []
    channel = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, _NETLINK_ROUTE)
    try:
        channel.setsockopt(*RECEIVE_TIMEOUT)
        channel.send(b"".join(packed(request, number) for number, request in enumerate(requests)))
        answers: list[tuple[int, int]] = []
        while len(answers) < len(requests):
            answers += replies(channel.recv(_REPLY_BYTES))
        return [(requests[number], failure) for number, failure in answers]
    finally:
        channel.close()


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
