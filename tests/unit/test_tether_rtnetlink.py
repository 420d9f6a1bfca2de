"""Netlink messages packed by hand, read by pyroute2."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from tether.faults import TetherError
from tether.net import network, rtnetlink, rtundo
from tether.spec import Route


def _parsed(request: rtnetlink.Request) -> Any:
    message = next(iter(MarshalRtnl().parse(rtnetlink.packed(request, 7))))
    assert message["header"]["sequence_number"] == 7
    return message


def _attributes(message: Any) -> dict[str, Any]:
    return dict(message["attrs"])


def test_link_up_with_mtu() -> None:
    message = _parsed(rtnetlink.link_up(3, "eth0", 1400))
    assert message["event"] == "RTM_NEWLINK"
    assert (message["index"], message["flags"], message["change"]) == (3, 1, 1)
    assert _attributes(message) == {"IFLA_MTU": 1400}


def test_link_up_leaves_the_mtu_alone() -> None:
    assert _attributes(_parsed(rtnetlink.link_up(1, "lo"))) == {}


def test_to_wait_for_a_link_changes_nothing() -> None:
    message = _parsed(rtnetlink.await_link(3, "eth0"))
    assert message["event"] == "RTM_NEWLINK"
    assert (message["index"], message["flags"], message["change"]) == (3, 0, 0)
    assert _attributes(message) == {}


def test_set_mac_changes_nothing_else() -> None:
    message = _parsed(rtnetlink.set_mac(3, "eth0", "02:00:00:00:00:Fe"))
    assert message["event"] == "RTM_NEWLINK"
    assert (message["index"], message["flags"], message["change"]) == (3, 0, 0)
    assert _attributes(message) == {"IFLA_ADDRESS": "02:00:00:00:00:fe"}


@pytest.mark.parametrize("mac", ["", "02:00:00:00:00", "02:00:00:00:00:0g", "01:00:5e:00:00:01", "2:0:0:0:0:1"])
def test_what_is_no_mac_address(mac: str) -> None:
    with pytest.raises(TetherError, match="is not the MAC address"):
        rtnetlink.set_mac(3, "eth0", mac)


def test_address_of_version_4() -> None:
    message = _parsed(rtnetlink.add_address(3, "eth0", "10.0.2.15/24"))
    assert message["event"] == "RTM_NEWADDR"
    assert (message["family"], message["prefixlen"], message["index"]) == (2, 24, 3)
    wanted = {"IFA_LOCAL": "10.0.2.15", "IFA_ADDRESS": "10.0.2.15", "IFA_BROADCAST": "10.0.2.255"}
    assert _attributes(message) == wanted


def test_point_to_point_addresses_have_no_broadcast() -> None:
    assert "IFA_BROADCAST" not in _attributes(_parsed(rtnetlink.add_address(3, "eth0", "10.0.0.0/31")))


def test_address_of_version_6_is_usable_at_once() -> None:
    message = _parsed(rtnetlink.add_address(3, "eth0", "fd00::5/64"))
    assert (message["family"], message["prefixlen"], message["flags"]) == (10, 64, 2)
    assert _attributes(message)["IFA_ADDRESS"] == "fd00::5"
    assert _parsed(rtnetlink.add_address(3, "eth0", "fd00::5/64", nodad=False))["flags"] == 0


@pytest.mark.parametrize(("gateway", "family"), [("10.0.2.2", 2), ("fe80::1", 10)])
def test_default_route(gateway: str, family: int) -> None:
    message = _parsed(rtnetlink.add_route(3, "eth0", Route(destination="default", gateway=gateway)))
    assert message["event"] == "RTM_NEWROUTE"
    assert (message["family"], message["dst_len"], message["table"], message["type"]) == (family, 0, 254, 1)
    assert message["flags"] == 0
    assert _attributes(message) == {"RTA_GATEWAY": gateway, "RTA_OIF": 3}


def test_route_with_everything() -> None:
    route = Route(destination="10.7.9.9/16", gateway="192.0.2.1", metric=50, source="10.0.2.15")
    message = _parsed(rtnetlink.add_route(3, "eth0", route, on_link=True))
    assert (message["dst_len"], message["scope"], message["flags"]) == (16, 0, 4)
    assert _attributes(message) == {
        "RTA_OIF": 3, "RTA_GATEWAY": "192.0.2.1", "RTA_DST": "10.7.0.0", "RTA_PRIORITY": 50, "RTA_PREFSRC": "10.0.2.15"}


def test_route_on_the_link_itself() -> None:
    message = _parsed(rtnetlink.add_route(3, "eth0", Route(destination="10.7.0.0/16")))
    assert message["scope"] == 253
    assert _attributes(message) == {"RTA_OIF": 3, "RTA_DST": "10.7.0.0"}


@pytest.mark.parametrize("route", [
    Route(destination="default"),
    Route(destination="10.0.0.0/8", gateway="fe80::1"),
    Route(destination="10.0.0.0", gateway="10.0.0.1"),
    Route(destination="10.0.0.0/8", gateway="x"),
    Route(destination="10.0.0.0/8", source="x"),
])  # fmt: skip
def test_what_is_no_route(route: Route) -> None:
    with pytest.raises(TetherError):
        rtnetlink.add_route(3, "eth0", route)


@pytest.mark.parametrize(("gateway", "addresses", "is_near"), [
    ("10.0.2.2", ("10.0.2.15/24",), True),
    ("10.0.3.2", ("10.0.2.15/24",), False),
    ("10.0.3.2", ("fd00::1/64", "10.0.2.15/23"), True),
    ("10.0.2.2", ("10.0.2.15/32",), False),
    ("fe80::1", (), True),
    ("fd00::2", ("fd00::1/64",), True),
    ("fd01::2", ("fd00::1/64", "10.0.2.15/0"), False),
])  # fmt: skip
def test_gateways_that_are_near(gateway: str, addresses: tuple[str, ...], is_near: bool) -> None:
    assert network.near(gateway, addresses) is is_near


def test_taking_back() -> None:
    route = rtnetlink.add_route(3, "eth0", Route(destination="10.7.0.0/16"))
    done = [rtnetlink.link_up(3, "eth0"), rtnetlink.add_address(3, "eth0", "10.0.2.15/24"), route]
    undone = [_parsed(request) for request in rtundo.undoing(done)]
    assert [message["event"] for message in undone] == ["RTM_DELROUTE", "RTM_DELADDR"]
    assert [message["header"]["flags"] for message in undone] == [5, 5]  # NLM_F_REQUEST | NLM_F_ACK
    assert _attributes(undone[1])["IFA_LOCAL"] == "10.0.2.15"
    down = _parsed(rtundo.link_down(3, "eth0"))
    assert (down["index"], down["flags"], down["change"]) == (3, 0, 1)


@pytest.mark.parametrize("cidr", ["10.0.2.15", "10.0.2.15/33", "10.0.2/24", "fd00::/129", "x/24", "10.0.2.15/-1"])
def test_what_is_no_address(cidr: str) -> None:
    with pytest.raises(TetherError, match="is not an address"):
        rtnetlink.add_address(3, "eth0", cidr)


def test_replies() -> None:
    def reply(sequence: int, failure: int) -> bytes:
        return struct.pack("=IHHIIi", 36, 2, 0, sequence, 0, -failure) + bytes(16)

    assert rtnetlink.replies(reply(0, 0) + reply(1, 17)) == [(0, 0), (1, 17)]
    assert rtnetlink.replies(b"") == []
    assert rtnetlink.replies(bytes(16)) == []  # a length of zero must not loop
