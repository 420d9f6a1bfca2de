"""The network of the container: its interfaces, its name, and the kernel's settings that Docker changes too."""

import errno
import os
from _socket import if_nametoindex, sethostname

from tether import files
from tether.rtnetlink import Request, add_address, add_default_route, carry_out, link_up
from tether.spec import Interface, Network
from tether.uevents import wait_for

_NET = "/sys/class/net"
_LOOPBACK = "lo"

# Docker's defaults (moby, daemon/oci_linux.go): a process that is not root may bind to any port and may ping.
SETTINGS = (
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", b"0"),
    ("/proc/sys/net/ipv4/ping_group_range", b"0 2147483647"),
)


def configure(network: Network) -> None:
    """Names the host, switches its interfaces on and gives them addresses and routes."""
    sethostname(network.hostname)
    if network.domainname:
        files.write("/proc/sys/kernel/domainname", network.domainname.encode())
    for path, value in SETTINGS:
        files.write(path, value)
    requests = [link_up(if_nametoindex(_LOOPBACK), _LOOPBACK)]
    for interface in network.interfaces:
        requests += plan(interface, find_interface(interface.mac))
    carry_out(requests)


def plan(interface: Interface, name: str) -> list[Request]:
    """The requests for one interface, in the order in which each is possible."""
    index = if_nametoindex(name)
    requests = [link_up(index, name, interface.mtu)]
    requests += [add_address(index, name, cidr) for cidr in interface.addresses]
    requests += [add_default_route(index, name, gateway) for gateway in (interface.gateway4, interface.gateway6)
                 if gateway]
    return requests


def find_interface(mac: str) -> str:
    """The name of the interface with this MAC address, awaited.  Raises TetherError that says which there are."""
    return wait_for(f"network interface {mac}", lambda: _by_mac(mac.lower()), _inventory)


def _by_mac(mac: str) -> str | None:
    return next((name for name, address in _interfaces() if address == mac), None)


def _interfaces() -> list[tuple[str, str]]:
    found = []
    for name in sorted(os.listdir(_NET)):
        try:
            found.append((name, files.read(f"{_NET}/{name}/address").decode().strip()))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENOTDIR):  # it went away, or has no address
                raise
    return found


def _inventory() -> str:
    shown = ", ".join(f"{name} ({address})" for name, address in _interfaces() if name != _LOOPBACK)
    return f"this VM has {shown}" if shown else "this VM has no network interface: is its driver in the kernel?"
