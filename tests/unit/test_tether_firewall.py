"""The firewall's plan; what it does is in tests/vm/test_network.py."""

from __future__ import annotations

import pytest

from tether.faults import TetherError
from tether.net import firewall, nftables
from tether.spec import Interface

NIC = Interface(mac="02:00:00:00:00:01", published=("80/tcp", "53/udp"), peers=("10.1.2.3/16", "fd00::5/64"))


def accepted(level: str, chain: str) -> list[bool]:
    rules = firewall.plan(NIC.but(firewall=level), 3)
    return [rule.accept for rule in rules if rule.chain == chain]


@pytest.mark.parametrize(("level", "input_rules", "output_rules"), [
    ("open", 0, 0), ("outbound", 5, 3), ("published", 7, 3), ("peers", 6, 6), ("closed", 1, 1),
])  # fmt: skip
def test_levels(level: str, input_rules: int, output_rules: int) -> None:
    incoming, outgoing = accepted(level, nftables.INPUT), accepted(level, nftables.OUTPUT)
    assert (len(incoming), len(outgoing)) == (input_rules, output_rules)
    assert all(incoming[:-1])
    assert all(outgoing[:-1])
    assert not incoming or not incoming[-1]  # the last word is no
    assert (False in outgoing) is (level in ("peers", "closed"))


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"firewall": "wide open"}, "is no level"),
    ({"firewall": "peers", "peers": ()}, "names no peers"),
    ({"firewall": "peers", "peers": ("10.0.0.0",)}, "is not an address with a prefix length"),
    ({"firewall": "published", "published": ("80",)}, "is no port"),
    ({"firewall": "published", "published": ("0/tcp",)}, "is no port"),
    ({"firewall": "published", "published": ("80/icmp",)}, "is no port"),
])  # fmt: skip
def test_what_is_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(TetherError, match=complaint):
        firewall.plan(NIC.but(**changes), 3)


def test_a_table_is_replaced_or_removed() -> None:
    rules = firewall.plan(NIC.but(firewall="closed"), 3)
    whats = [request.what for request in nftables.replace_table("t", rules)]
    assert whats == ["table t", "remove table t", "table t", "chain input", "chain output", "rule in input",
                     "rule in output"]  # fmt: skip
    assert [request.what for request in nftables.replace_table("t", ())] == ["table t", "remove table t"]


def test_attributes_are_aligned() -> None:
    for level in firewall.LEVELS:
        for request in nftables.replace_table("table", firewall.plan(NIC.but(firewall=level), 3)):
            assert len(request.body) % 4 == 0
