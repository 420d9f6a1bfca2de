"""The network of the container: its interfaces, its name, and the kernel's settings that Docker changes too."""

import errno
import os
from _socket import AF_INET6, if_nametoindex, sethostname

from tether.faults import TetherError
from tether.kernel import files
from tether.kernel.uevents import DEADLINE_S, missing, wait_for
from tether.net.rtnetlink import (
    DEFAULT_ROUTE,
    Request,
    add_address,
    add_route,
    await_link,
    carry_out,
    link_up,
    network_of,
    parse_address,
    parse_cidr,
    set_mac,
)
from tether.spec import FIREWALL_OPEN, Interface, Network, Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tether.net.early import EarlyInterfaces

_NET = "/sys/class/net"
_LOOPBACK, _LOOPBACK_INDEX = "lo", 1  # LOOPBACK_IFINDEX of the kernel's include/net/flow.h
_NO_ADDRESS = (errno.ENOENT, errno.ENODEV, errno.EINVAL, errno.ENOTDIR)  # it went away, or is no interface with one

# Docker's defaults (moby, daemon/oci_linux.go): a process that is not root may bind to any port and may ping.
SETTINGS = (
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", b"0"),
    ("/proc/sys/net/ipv4/ping_group_range", b"0 2147483647"),
)


def configure(network: Network, early: "EarlyInterfaces | None" = None) -> tuple[Interface, ...]:
    """Names the host, switches its interfaces on and gives them addresses and routes.

    Those that are up already (`early`) only get their own MAC addresses.  Gives those whose addresses take time to be
    usable, by DHCP or because duplicates are asked for: tether.net.livenet sees to them.
    """
    sethostname(network.hostname)
    if network.domainname:
        files.write("/proc/sys/kernel/domainname", network.domainname.encode())
    if early is not None:
        early.take_macs(network.interfaces)
        return ()
    return configure_interfaces(network.interfaces)


def configure_interfaces(interfaces: tuple[Interface, ...]) -> tuple[Interface, ...]:
    """Gives those that are slow, and left for later."""
    for path, value in SETTINGS:
        files.write(path, value)
    requests = [link_up(_LOOPBACK_INDEX, _LOOPBACK)]
    slow = []
    for interface in interfaces:
        if interface.found_as:
            name = find_interface(interface.found_as)
            requests.append(set_mac(if_nametoindex(name), name, interface.mac))
        if interface.dhcp or interface.check_duplicates:
            slow.append(interface)
        else:
            name = find_interface(interface.found_as or interface.mac)
            guard(interface, name)
            index = if_nametoindex(name)
            requests += addressing(interface, name, index)
            requests += routing(interface, name, index)
    carry_out(requests)
    return tuple(slow)


def guard(interface: Interface, name: str) -> None:
    """What has to be so before an interface is switched on: its firewall, and who may configure it.

    One whose IPv6 addresses are given takes none, and no routes either, from routers that advertise some.  One without
    any keeps the kernel's way: it configures itself where there is such a router (RFC 4862).
    """
    if interface.firewall != FIREWALL_OPEN:
        from tether.net.firewall import apply

        apply(interface, name)
    if any(":" in cidr for cidr in interface.addresses):
        carry_out([await_link(if_nametoindex(name), name)])  # it may just have been plugged in
        files.write(f"/proc/sys/net/ipv6/conf/{name}/accept_ra", b"0")


def addressing(interface: Interface, name: str, index: int) -> list[Request]:
    """The requests that switch an interface on and give it its addresses."""
    nodad = not interface.check_duplicates
    addresses = [add_address(index, name, cidr, nodad) for cidr in interface.addresses]
    return [link_up(index, name, interface.mtu), *addresses]


def routing(interface: Interface, name: str, index: int) -> list[Request]:
    """The requests for its routes; the addresses must be usable."""
    routes = [Route(destination=DEFAULT_ROUTE, gateway=gateway)
              for gateway in (interface.gateway4, interface.gateway6) if gateway]
    return [add_route(index, name, route, bool(route.gateway) and not near(route.gateway, interface.addresses))
            for route in (*routes, *interface.routes)]


def near(gateway: str, addresses: tuple[str, ...]) -> bool:
    """Whether a gateway is in the network of one of these addresses (or an address of every link, fe80::/10)."""
    family, wanted = parse_address(gateway)
    if family == AF_INET6 and wanted[0] == 0xFE and wanted[1] & 0xC0 == 0x80:
        return True
    for cidr in addresses:
        kind, address, length = parse_cidr(cidr)
        if kind == family and network_of(address, length) == network_of(wanted, length):
            return True
    return False


def find_interface(mac: str) -> str:
    """The name of the interface with this MAC address, awaited.  Raises TetherError that says which there are."""
    return wait_for(f"network interface {mac}", lambda: known_interface(mac.lower()), _inventory)


def not_found(mac: str) -> TetherError:
    """What to say of an interface that does not come."""
    return missing(f"network interface {mac}", DEADLINE_S, _inventory())


def interface_by_mac(mac: str) -> str | None:
    """The name of the interface with this MAC address (in lower case), or None."""
    return next((name for name, address in _interfaces() if address == mac), None)


def known_interface(mac: str) -> str | None:
    """The same once it can be spoken of: a new one is in /sys, and its event sent, a moment before the kernel finds it
    by its name (register_netdevice() in net/core/dev.c)."""
    name = interface_by_mac(mac)
    if name is not None:
        try:
            if_nametoindex(name)
        except OSError:
            return None
    return name


def _interfaces() -> "Iterator[tuple[str, str]]":
    """Name and address of each, read as they are asked for: the first is most often the one that is looked for."""
    for name in sorted(os.listdir(_NET)):
        try:
            yield name, files.read(f"{_NET}/{name}/address").decode().strip()
        except OSError as error:
            if error.errno not in _NO_ADDRESS:
                raise


def _inventory() -> str:
    shown = ", ".join(f"{name} ({address})" for name, address in _interfaces() if name != _LOOPBACK)
    return f"this VM has {shown}" if shown else "this VM has no network interface: is its driver in the kernel?"
