"""What an interface lets through: the levels of trust of a network, named as vSphere Integrated Containers names them.

    open       everything
    outbound   what the container begins, and what belongs to it
    published  the same, and connections to the ports that it publishes
    peers      the networks of its peers only, both ways
    closed     nothing

IPv6 could not work at all without neighbour discovery, nor DHCP renew a lease: both pass where anything does.
"""

import struct
from _socket import AF_INET, AF_INET6, if_nametoindex

from tether.faults import TetherError
from tether.kernel.modules import load_on_demand
from tether.net.nftables import (
    AT_LEAST,
    AT_MOST,
    ICMPV6,
    INPUT,
    IPV4,
    IPV6,
    META_FAMILY,
    META_IN,
    META_OUT,
    META_PROTOCOL,
    OUTPUT,
    TCP,
    TRANSPORT,
    UDP,
    Rule,
    carry_out,
    meta,
    of_a_known_connection,
    payload,
    payload_network,
    replace_table,
)
from tether.net.rtnetlink import network_of, parse_cidr
from tether.spec import FIREWALL_OPEN, Interface

OUTBOUND, PUBLISHED, PEERS, CLOSED = "outbound", "published", "peers", "closed"
LEVELS = (FIREWALL_OPEN, OUTBOUND, PUBLISHED, PEERS, CLOSED)
MODULES = ("nf_tables", "nft_ct")
_PROTOCOLS = {"tcp": TCP, "udp": UDP}
_DISCOVERY = (133, 136)  # router and neighbour solicitation and advertisement (RFC 4861)
_LISTENER_REPORT = 143  # without it a switch that listens would not send us the solicitations (RFC 3810)
_DHCP_SERVER, _DHCP_CLIENT = 67, 68
_MAX_PORT = 65535
# Where source and destination stand in the headers of IPv4 and IPv6.
_OFFSETS = {AF_INET: (12, 16), AF_INET6: (8, 24)}


def apply(interface: Interface, name: str) -> None:
    """Sets the rules for an interface in place of what there was.  Raises TetherError."""
    table = f"vch-{name}"
    rules = plan(interface, if_nametoindex(name))
    load_on_demand(*MODULES)
    try:
        carry_out(replace_table(table, rules))
    except OSError as error:
        raise _not_possible(interface, error.errno or 0) from error
    except TetherError as error:
        raise _not_possible(interface, error.number, str(error)) from error


def plan(interface: Interface, index: int) -> tuple[Rule, ...]:
    """The rules for an interface, the first that fits counts.  Raises TetherError for what is no level or port."""
    level = interface.firewall
    what = f"firewall of {interface.mac}"
    if level not in LEVELS:
        raise TetherError(what, f"{level!r} is no level", hint=f"known are {', '.join(LEVELS)}")
    if level == FIREWALL_OPEN:
        return ()
    number = struct.pack("=I", index)
    came, goes = meta(META_IN, number), meta(META_OUT, number)
    rules = [] if level == CLOSED else [*_always(INPUT, came), *_always(OUTPUT, goes)]
    if level in (OUTBOUND, PUBLISHED):
        rules.append(Rule(chain=INPUT, matches=(came, of_a_known_connection()), accept=True))
    if level == PUBLISHED:
        rules += [Rule(chain=INPUT, matches=(came, *_port(what, port)), accept=True) for port in interface.published]
    if level == PEERS:
        if not interface.peers:
            raise TetherError(what, "names no peers", hint="list their networks, such as 10.1.0.0/16")
        for peer in interface.peers:
            source, destination = _network(peer)
            rules.append(Rule(chain=INPUT, matches=(came, *source), accept=True))
            rules.append(Rule(chain=OUTPUT, matches=(goes, *destination), accept=True))
    rules.append(Rule(chain=INPUT, matches=(came,), accept=False))
    if level in (PEERS, CLOSED):
        rules.append(Rule(chain=OUTPUT, matches=(goes,), accept=False))
    return tuple(rules)


def _always(chain: str, interface: bytes) -> list[Rule]:
    """What passes where anything does."""
    icmp = meta(META_PROTOCOL, ICMPV6)
    first, last = (bytes((kind,)) for kind in _DISCOVERY)
    discovery = payload(TRANSPORT, 0, first, AT_LEAST) + payload(TRANSPORT, 0, last, AT_MOST)
    report = payload(TRANSPORT, 0, bytes((_LISTENER_REPORT,)))
    source, target = (_DHCP_SERVER, _DHCP_CLIENT) if chain == INPUT else (_DHCP_CLIENT, _DHCP_SERVER)
    ports = payload(TRANSPORT, 0, struct.pack("!HH", source, target))
    return [
        Rule(chain=chain, matches=(interface, icmp, discovery), accept=True),
        Rule(chain=chain, matches=(interface, icmp, report), accept=True),
        Rule(chain=chain, matches=(interface, meta(META_FAMILY, IPV4), meta(META_PROTOCOL, UDP), ports), accept=True),
    ]


def _port(what: str, text: str) -> tuple[bytes, ...]:
    """The matches for "80/tcp"."""
    port, _, protocol = text.partition("/")
    if protocol not in _PROTOCOLS or not port.isdecimal() or not 0 < int(port) <= _MAX_PORT:
        raise TetherError(what, f"{text!r} is no port", hint="write it like 80/tcp")
    return meta(META_PROTOCOL, _PROTOCOLS[protocol]), payload(TRANSPORT, 2, struct.pack("!H", int(port)))


def _network(cidr: str) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The matches for what comes from a network, and for what goes there."""
    family, address, prefix = parse_cidr(cidr)
    of_family = meta(META_FAMILY, IPV4 if family == AF_INET else IPV6)
    source, destination = (payload_network(at, network_of(address, prefix), prefix) for at in _OFFSETS[family])
    return (of_family, source), (of_family, destination)


def _not_possible(interface: Interface, number: int, text: str = "") -> TetherError:
    return TetherError(f"firewall of {interface.mac}", text or "this kernel has no packet filter", number,
                       "boot a kernel with nf_tables and nft_ct, such as pico, or use the level open")
