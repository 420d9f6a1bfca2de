"""The addresses of QEMU's user-mode network (slirp): one guest behind the host's own addresses.  Pure, but for the look
at whether the host has IPv6.

The network is the /24 (IPv4) or /64 (IPv6) around the guest's address; in it, slirp is .2, its name server .3.
"""

from __future__ import annotations

import functools
import ipaddress
from typing import NamedTuple

DEFAULT_IPV4 = "10.0.2.15"  # what slirp gives unless told otherwise (QEMU manual, "Using the user mode network stack")
DEFAULT_IPV6 = "fec0::15"  # in slirp's own prefix
IPV4_PREFIX, IPV6_PREFIX = 24, 64
_GATEWAY, _RESOLVER = 2, 3  # in each network
_ROUTES6 = "/proc/net/ipv6_route"  # destination, its prefix length ... flags, interface
_RTF_REJECT = 0x200  # linux/route.h


class Family(NamedTuple):
    """The guest's address of one family, and who else is in its network."""

    address: str
    network: str
    prefix: int
    gateway: str
    resolver: str

    @property
    def cidr(self) -> str:
        return f"{self.address}/{self.prefix}"


class Addresses(NamedTuple):
    """Those of one machine; `v6` is None where it has no IPv6."""

    v4: Family
    v6: Family | None = None


def family(text: str) -> Family:
    """The network around an address.  Raises ValueError if a guest cannot have it."""
    address = ipaddress.ip_address(text)
    prefix = IPV4_PREFIX if address.version == 4 else IPV6_PREFIX
    network = ipaddress.ip_network(f"{address}/{prefix}", strict=False)
    gateway, resolver = network[_GATEWAY], network[_RESOLVER]
    taken = {network[0]: "the network itself", network[-1]: "everybody in the network", gateway: "the host",
             resolver: "the name server"}  # fmt: skip
    if address in taken:
        raise ValueError(f"{text} is {taken[address]} in the user network")
    if address.is_multicast or address.is_loopback or address.is_link_local or address.is_unspecified:
        raise ValueError(f"{text} is no address that a container can have")
    return Family(str(address), str(network[0]), prefix, str(gateway), str(resolver))


@functools.cache  # asked for by the spec, its key and the command line
def addresses(ipv4: str | None, ipv6: str | None, host_has_ipv6: bool) -> Addresses:
    """What a machine gets: what the user asked for, else slirp's own; IPv6 unasked only where the host has it."""
    wanted = ipv6 or (DEFAULT_IPV6 if host_has_ipv6 else None)
    return Addresses(family(ipv4 or DEFAULT_IPV4), family(wanted) if wanted else None)


USUAL_ADDRESSES = addresses(None, None, host_has_ipv6=False)


def netdev_words(addresses: Addresses) -> list[str]:
    """The words of -netdev user that say so."""
    v4, v6 = addresses.v4, addresses.v6
    words = []  # neither family is said, or both: one alone switches the other off
    if v4.address != DEFAULT_IPV4:
        words = [f"net={v4.network}/{v4.prefix}", f"host={v4.gateway}", f"dns={v4.resolver}", f"dhcpstart={v4.address}"]
    if v6 is None:
        return [*words, "ipv6=off"]
    return [*words, "ipv4=on", "ipv6=on", f"ipv6-prefix={v6.network}", f"ipv6-prefixlen={v6.prefix}",
            f"ipv6-host={v6.gateway}", f"ipv6-dns={v6.resolver}"]  # fmt: skip


def host_has_ipv6() -> bool:
    """Whether this host has a way to anywhere over IPv6."""
    try:
        with open(_ROUTES6, encoding="ascii") as file:
            return has_default_route(file.read())
    except OSError:
        return False


def has_default_route(table: str) -> bool:
    """Whether /proc/net/ipv6_route knows where to send what it knows nothing of."""
    for line in table.splitlines():
        destination, length, *_, flags, interface = line.split()
        if length == "00" and int(destination, 16) == 0 and interface != "lo" and not int(flags, 16) & _RTF_REJECT:
            return True
    return False
