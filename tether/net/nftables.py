"""The messages for the kernel's packet filter that a firewall of ours needs (linux/netfilter/nf_tables.h).

A rule is a list of expressions that the kernel goes through from left to right: load something into a register,
compare it, give a verdict.  All messages of a change are one batch, which is done completely or not at all.  Numbers in
attributes are in the network's byte order, what is compared is in the order of what it is compared with.
"""

import struct
from _socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, socket

from tether.faults import TetherError
from tether.link.record import Record
from tether.net.rtnetlink import RECEIVE_TIMEOUT, Request, packed, replies

NETLINK_NETFILTER = 12
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11  # linux/netfilter/nfnetlink.h
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NEW_TABLE, _DEL_TABLE, _NEW_CHAIN, _NEW_RULE = _SUBSYSTEM, _SUBSYSTEM + 2, _SUBSYSTEM + 3, _SUBSYSTEM + 6
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_INET = 1  # NFPROTO_INET: IPv4 and IPv6
_NESTED = 0x8000
_ATTRIBUTE = struct.Struct("=HH")
_FAMILY = struct.Struct("!BBH")  # struct nfgenmsg: family version resource

LOCAL_IN, LOCAL_OUT = 1, 3  # linux/netfilter.h: hooks
INPUT, OUTPUT = "input", "output"
_CHAINS = ((INPUT, LOCAL_IN), (OUTPUT, LOCAL_OUT))
_ACCEPT, _DROP = 1, 0
_VERDICT, _REGISTER = 0, 1  # registers

META_IN, META_OUT, META_FAMILY, META_PROTOCOL = 4, 5, 15, 16  # NFT_META_IIF, OIF, NFPROTO, L4PROTO
IPV4, IPV6 = bytes((2,)), bytes((10,))  # NFPROTO_IPV4, NFPROTO_IPV6
TCP, UDP, ICMPV6 = bytes((6,)), bytes((17,)), bytes((58,))
EQUAL, AT_MOST, AT_LEAST = 0, 3, 5  # NFT_CMP_EQ, LTE, GTE
NETWORK, TRANSPORT = 1, 2  # NFT_PAYLOAD_*_HEADER
_CT_STATE = 0
_ESTABLISHED_OR_RELATED = struct.pack("=I", 2 | 4)


class Rule(Record):
    """What goes through `chain` and fits all `matches` is accepted, or dropped."""

    chain: str
    matches: tuple[bytes, ...]
    accept: bool


def meta(key: int, value: bytes) -> bytes:
    """A fact about the packet is this."""
    return _expression("meta", _number(1, _REGISTER) + _number(2, key)) + _compare(EQUAL, value)


def payload(base: int, offset: int, value: bytes, operation: int = EQUAL) -> bytes:
    """The bytes at `offset` of a header are this, or at most, or at least."""
    where = _number(1, _REGISTER) + _number(2, base) + _number(3, offset) + _number(4, len(value))
    return _expression("payload", where) + _compare(operation, value)


def payload_network(offset: int, network: bytes, prefix: int) -> bytes:
    """The address at `offset` of the network header is in this network."""
    where = _number(1, _REGISTER) + _number(2, NETWORK) + _number(3, offset) + _number(4, len(network))
    mask = ((1 << 8 * len(network)) - (1 << 8 * len(network) - prefix)).to_bytes(len(network), "big")
    return _expression("payload", where) + _masked(mask) + _compare(EQUAL, network)


def of_a_known_connection() -> bytes:
    """The packet belongs to a connection that was accepted, or is an error about one."""
    state = _expression("ct", _number(1, _REGISTER) + _number(2, _CT_STATE))
    return state + _masked(_ESTABLISHED_OR_RELATED) + _compare(1, bytes(4))  # 1: NFT_CMP_NEQ


def replace_table(table: str, rules: tuple[Rule, ...]) -> list[Request]:
    """The requests that make `table` consist of these rules, in this order; without any there is no table then."""
    name = _text(1, table)
    requests = [
        # A table that is not there cannot be removed, and one that is can be made: so both, and then all is known.
        _request(f"table {table}", _NEW_TABLE, _CREATE, name),
        _request(f"remove table {table}", _DEL_TABLE, 0, name),
    ]
    if rules:
        requests.append(_request(f"table {table}", _NEW_TABLE, _CREATE, name))
        requests += [_chain(table, chain, hook) for chain, hook in _CHAINS]
    return requests + [_rule(table, rule) for rule in rules]


def carry_out(requests: list[Request]) -> None:
    """Does all of it, or nothing.  Raises TetherError, or OSError for a kernel without packet filter."""
    head = _FAMILY.pack(0, 0, 10)  # the batch is for this subsystem
    batch = [_edge(_BATCH_BEGIN, head), *requests, _edge(_BATCH_END, head)]
    channel = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER)
    try:
        channel.setsockopt(*RECEIVE_TIMEOUT)
        channel.send(b"".join(packed(request, number) for number, request in enumerate(batch)))
        waiting = len(requests)
        while waiting > 0:
            for number, failure in replies(channel.recv(1 << 16)):
                if failure:
                    raise TetherError(f"firewall: {batch[number].what}", f"the kernel refuses it [{failure}]", failure)
                waiting -= 1
    finally:
        channel.close()


def _edge(kind: int, body: bytes) -> Request:
    return Request(what="batch", kind=kind, flags=_REQUEST, body=body)


def _request(what: str, kind: int, flags: int, attributes: bytes) -> Request:
    return Request(what=what, kind=kind, flags=_REQUEST | _ACK | flags, body=_FAMILY.pack(_INET, 0, 0) + attributes)


def _chain(table: str, chain: str, hook: int) -> Request:
    where = _nested(4, _number(1, hook) + _number(2, 0))  # priority 0: that of "filter"
    body = _text(1, table) + _text(3, chain) + where + _number(5, _ACCEPT) + _text(7, "filter")
    return _request(f"chain {chain}", _NEW_CHAIN, _CREATE, body)


def _rule(table: str, rule: Rule) -> Request:
    verdict = _nested(2, _nested(2, _number(1, _ACCEPT if rule.accept else _DROP)))
    expressions = b"".join(rule.matches) + _expression("immediate", _number(1, _VERDICT) + verdict)
    body = _text(1, table) + _text(2, rule.chain) + _nested(4, expressions)
    return _request(f"rule in {rule.chain}", _NEW_RULE, _CREATE | _APPEND, body)


def _compare(operation: int, value: bytes) -> bytes:
    return _expression("cmp", _number(1, _REGISTER) + _number(2, operation) + _nested(3, _attribute(1, value)))


def _masked(mask: bytes) -> bytes:
    zero = _nested(5, _attribute(1, bytes(len(mask))))
    where = _number(1, _REGISTER) + _number(2, _REGISTER) + _number(3, len(mask))
    return _expression("bitwise", where + _nested(4, _attribute(1, mask)) + zero)


def _expression(name: str, data: bytes) -> bytes:
    return _nested(1, _text(1, name) + _nested(2, data))


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!I", value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _nested(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)
