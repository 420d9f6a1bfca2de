"""What a DHCP server gave: a lease, read from its ACK with distrust, and the changes of the network it stands for."""

from _socket import inet_aton

from tether.link.record import Record
from tether.net.dhcpwire import (
    CLASSLESS_ROUTES,
    DOMAIN_NAME,
    DOMAIN_NAME_SERVER,
    DOMAIN_SEARCH,
    FOREVER,
    INTERFACE_MTU,
    LEASE_TIME,
    NO_ADDRESS,
    REBINDING_TIME,
    RENEWAL_TIME,
    ROUTER,
    SERVER_IDENTIFIER,
    SUBNET_MASK,
    Message,
    classless_routes,
    domain_names,
)
from tether.net.rtnetlink import Request, add_address, add_route, link_up
from tether.spec import Interface, Route

LEAST_SECONDS = 10  # a lease that ended sooner would have us do nothing else
LEAST_MTU = 576  # what every IPv4 link carries (RFC 791); RFC 2132 allows 68, on which IPv6 ends
DEFAULT_DESTINATION = "0.0.0.0/0"
METRIC = 100  # + index of the interface: what the spec says comes first, and two leases can both bring a default route
_NAME_BYTES = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


class Lease(Record):
    """An address with a network prefix, for `seconds` from when it was asked for (FOREVER: for ever)."""

    address: str
    prefix: int
    server: str
    seconds: int
    renew: int
    rebind: int
    routes: tuple[Route, ...] = ()
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    mtu: int = 0

    @property
    def cidr(self) -> str:
        return f"{self.address}/{self.prefix}"


def read_lease(message: Message) -> Lease:
    """The lease in an OFFER or ACK.  Raises ValueError if it is not one that a machine can use."""
    server = message.addresses(SERVER_IDENTIFIER)
    if not _usable(message.yours) or len(server) != 1:
        raise ValueError(f"an offer of {message.yours} by {server}")
    seconds = message.number(LEASE_TIME, 4)
    seconds = FOREVER if seconds is None else max(seconds, LEAST_SECONDS)
    rebind = message.number(REBINDING_TIME, 4)
    if rebind is None or not 0 < rebind < seconds:
        rebind = seconds * 7 // 8  # RFC 2131, 4.4.5
    renew = message.number(RENEWAL_TIME, 4)
    if renew is None or not 0 < renew < rebind:
        renew = min(seconds // 2, rebind - 1)
    mtu = message.number(INTERFACE_MTU, 2) or 0
    return Lease(
        address=message.yours, prefix=_prefix(message), server=server[0], seconds=seconds, renew=renew, rebind=rebind,
        routes=_routes(message), nameservers=tuple(filter(_usable, message.addresses(DOMAIN_NAME_SERVER))),
        search=_search(message), mtu=mtu if mtu >= LEAST_MTU else 0,
    )


def requests_for(lease: Lease, index: int, name: str, interface: Interface) -> list[Request]:
    """The changes of the network for a lease; what the spec says of the interface counts more."""
    requests = [link_up(index, name, lease.mtu)] if lease.mtu and not interface.mtu else []
    requests.append(add_address(index, name, lease.cidr))
    for route in lease.routes:
        if not (interface.gateway4 and route.destination == DEFAULT_DESTINATION):
            near = not route.gateway or _network(route.gateway, lease.prefix) == _network(lease.address, lease.prefix)
            requests.append(add_route(index, name, route.but(source=lease.address, metric=METRIC + index), not near))
    return requests


def _prefix(message: Message) -> int:
    """Length of the network prefix; that of the address's class where the server does not say, as Linux has it."""
    mask = message.number(SUBNET_MASK, 4)
    if mask is None:
        first = inet_aton(message.yours)[0]
        return 8 if first < 128 else 16 if first < 192 else 24
    length = mask.bit_count()
    if length == 0 or mask != (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF:
        raise ValueError(f"a subnet mask of {mask:#x}")
    return length


def _routes(message: Message) -> tuple[Route, ...]:
    """Those of option 121 if it is there, else one by the first router (RFC 3442: never both)."""
    if CLASSLESS_ROUTES in message.options:
        found = dict(classless_routes(message.options[CLASSLESS_ROUTES]))
        return tuple(Route(destination=destination, gateway="" if gateway == NO_ADDRESS else gateway)
                     for destination, gateway in found.items())
    routers = tuple(filter(_usable, message.addresses(ROUTER)))
    return (Route(destination=DEFAULT_DESTINATION, gateway=routers[0]),) if routers else ()


def _search(message: Message) -> tuple[str, ...]:
    """Search domains; none if one of them would say something else in a resolv.conf."""
    if DOMAIN_SEARCH in message.options:
        names = domain_names(message.options[DOMAIN_SEARCH])
    else:
        names = tuple(message.options.get(DOMAIN_NAME, b"").decode("latin-1").rstrip("\0").split(" "))
    names = tuple(name for name in names if name.strip("."))
    return names if all(set(name) <= _NAME_BYTES for name in names) else ()


def _usable(address: str) -> bool:
    """Whether a machine can have this address: neither nothing, nor loopback, nor a group, nor everybody."""
    first = inet_aton(address)[0]
    return 0 < first < 224 and first != 127


def _network(address: str, prefix: int) -> int:
    return int.from_bytes(inet_aton(address), "big") >> (32 - prefix)
