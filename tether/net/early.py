"""Interfaces that are up before it is known whose they are: those of an image's template.

Addresses and routes are there.  What is missing is what no two machines share, the MAC address, and what follows from
it: the IPv6 link-local address.  A clone gets the one before its program starts and the other soon after, because to
give an interface an IPv6 address costs as much as everything else that a clone does about its network.
"""

import fcntl
import struct
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket

from tether.faults import TetherError
from tether.kernel import files
from tether.net.network import configure_interfaces, find_interface
from tether.net.rtnetlink import parse_mac
from tether.spec import Interface

_SIOCSIFHWADDR = 0x8924  # linux/sockios.h
_IFREQ = struct.Struct("=16sH6s16x")  # struct ifreq with a hardware address (netdevice(7)): name, family, address
_ARPHRD_ETHER = 1  # linux/if_arp.h
_ADDR_GEN_EUI64, _ADDR_GEN_NONE = b"0", b"1"  # linux/if_link.h, IN6_ADDR_GEN_MODE_*


class EarlyInterfaces:
    """See the module."""

    def __init__(self, wanted: tuple[Interface, ...]) -> None:
        """Configures them.  Raises TetherError for those that are slow to be usable."""
        self._names = [find_interface(interface.mac) for interface in wanted]
        self._channel = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)  # of any family: what is asked for is no packet
        for name in self._names:
            _make_link_local(name, _ADDR_GEN_NONE)
        if configure_interfaces(wanted):
            raise TetherError("interfaces", "with DHCP or a search for duplicates are no template's")

    def take_macs(self, now: tuple[Interface, ...]) -> None:
        """Gives each its own MAC address.  Raises TetherError for one that is none, OSError."""
        for name, interface in zip(self._names, now, strict=True):
            request = _IFREQ.pack(name.encode(), _ARPHRD_ETHER, parse_mac(interface.mac))
            fcntl.ioctl(self._channel.fileno(), _SIOCSIFHWADDR, request)

    def take_link_locals(self) -> None:
        """Gives each the IPv6 link-local address that follows from its MAC address."""
        for name in self._names:
            _make_link_local(name, _ADDR_GEN_EUI64)


def _make_link_local(name: str, way: bytes) -> None:
    """Decides what an interface's link-local address is made of (ip-sysctl.rst, addr_gen_mode)."""
    try:
        files.write(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode", way)
    except FileNotFoundError:
        return  # the kernel was started without IPv6, or it is gone
