"""Telling the neighbours on a link which addresses are here now: gratuitous ARP (RFC 5227, 3) and unsolicited neighbour
advertisements (RFC 4861, 7.2.6).  A machine that had an address before, a clone's template or one on another host, is
otherwise remembered for minutes, by switches too.
"""

import errno
import struct
from _socket import AF_INET, AF_INET6, AF_PACKET, SOCK_CLOEXEC, SOCK_RAW, inet_pton, socket

from tether.kernel import files
from tether.net.checksum import checksum
from tether.net.network import interface_by_mac
from tether.net.rtnetlink import parse_cidr
from tether.spec import Network

_ETH_P_ARP, _ETH_P_IPV6 = 0x0806, 0x86DD  # linux/if_ether.h
_BROADCAST = b"\xff" * 6
_ALL_NODES_MAC = bytes.fromhex("333300000001")  # of ff02::1 (RFC 2464, 7)
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ARP_ETHERNET, _ARP_REQUEST = 1, 1
_IPV6 = struct.Struct("!IHBB16s16s")
_ICMPV6, _HOP_LIMIT = 58, 255
_ADVERTISEMENT = struct.Struct("!BBHI16sBB6s")  # with one option: our link-layer address
_NEIGHBOUR_ADVERTISEMENT, _OVERRIDE, _TARGET_LINK_LAYER_ADDRESS = 136, 0x20000000, 2
_OFF = (errno.ENETDOWN, errno.ENODEV, errno.ENXIO, errno.ENOBUFS)  # then there is nobody to tell


def announce(name: str, addresses: "tuple[str, ...]") -> None:
    """Tells everybody on the link of interface `name` that it has these addresses (CIDR notation)."""
    mac = bytes.fromhex(files.read(f"/sys/class/net/{name}/address").decode().strip().replace(":", ""))
    packets = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0)
    try:
        packets.bind((name, 0))
        for cidr in addresses:
            packets.send(frame(mac, cidr))
    except OSError as error:
        if error.errno not in _OFF:
            raise
    finally:
        packets.close()


def announce_all(network: Network) -> None:
    """Tells what the spec says; a lease is not in it (tether.net.livenet)."""
    for interface in network.interfaces:
        name = interface_by_mac(interface.mac.lower())
        if name is not None and interface.announce:
            announce(name, interface.addresses)


def frame(mac: bytes, cidr: str) -> bytes:
    """The Ethernet frame that announces an address."""
    family, address, _ = parse_cidr(cidr)
    return _arp(mac, address) if family == AF_INET else _advertisement(mac, address)


def _arp(mac: bytes, address: bytes) -> bytes:
    body = _ARP.pack(_ARP_ETHERNET, 0x0800, 6, 4, _ARP_REQUEST, mac, address, bytes(6), address)
    return _BROADCAST + mac + _ETH_P_ARP.to_bytes(2, "big") + body


def _advertisement(mac: bytes, address: bytes) -> bytes:
    everybody = inet_pton(AF_INET6, "ff02::1")
    body = [_NEIGHBOUR_ADVERTISEMENT, 0, 0, _OVERRIDE, address, _TARGET_LINK_LAYER_ADDRESS, 1, mac]
    pseudo = address + everybody + struct.pack("!II", _ADVERTISEMENT.size, _ICMPV6)
    body[2] = checksum(pseudo + _ADVERTISEMENT.pack(*body))
    head = _IPV6.pack(6 << 28, _ADVERTISEMENT.size, _ICMPV6, _HOP_LIMIT, address, everybody)
    return _ALL_NODES_MAC + mac + _ETH_P_IPV6.to_bytes(2, "big") + head + _ADVERTISEMENT.pack(*body)

