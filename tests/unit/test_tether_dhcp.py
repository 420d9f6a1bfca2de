"""The DHCP client as a state machine, with hypothesis for the servers; tests/vm/test_network.py has a real one."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.net import dhcpwire
from tether.net.checksum import checksum
from tether.net.dhcp import (
    NAK_PAUSE_S,
    NEVER,
    Asking,
    Bound,
    Client,
    Configure,
    Looking,
    Lose,
    Rebinding,
    Renewing,
    Send,
)
from tether.net.dhcpwire import ACK, DISCOVER, NAK, OFFER, RELEASE, REQUEST, Message
from tether.net.lease import Lease, read_lease, requests_for
from tether.spec import Interface, Route

if TYPE_CHECKING:
    from tether.net.dhcp import Action

MAC = bytes.fromhex("020000000001")
SERVER, OTHER = "10.0.0.1", "10.0.0.2"
ADDRESS = "10.0.0.50"


def packed(*addresses: str) -> bytes:
    return b"".join(bytes(int(part) for part in address.split(".")) for address in addresses)


def answer(to: Message, kind: int, address: str = ADDRESS, *, server: str = SERVER, **options: bytes) -> Message:
    """What a server says to a message; options by o<number>."""
    said = {53: bytes((kind,)), 54: packed(server), 51: struct.pack("!I", 1000), 1: packed("255.255.255.0")}
    said |= {int(name[1:]): value for name, value in options.items()}
    return Message(xid=to.xid, mac=to.mac, yours=address, options={key: value for key, value in said.items() if value})


def draws() -> Iterator[int]:
    """Numbers that are all different, in the middle of the range: no jitter to speak of."""
    return count(1 << 31)


def client(now: float = 0.0) -> Client:
    numbers = draws()
    return Client(MAC, "box", now, lambda: next(numbers))


def sent(actions: list[Action]) -> Send:
    found = [action for action in actions if isinstance(action, Send)]
    assert len(found) == 1
    return found[0]


def bound(now: float = 0.0, **options: bytes) -> tuple[Client, Lease]:
    made = client(now)
    discover = sent(made.tick(now)).message
    request = sent(made.take(answer(discover, OFFER, ADDRESS, server=SERVER, **options), now)).message
    configure = made.take(answer(request, ACK, ADDRESS, server=SERVER, **options), now)[0]
    assert isinstance(configure, Configure)
    return made, configure.lease


class TestTheWayToALease:
    def test_discover_offer_request_ack(self) -> None:
        made = client()
        first = sent(made.tick(0))
        assert (first.message.kind, first.server) == (DISCOVER, "")
        assert first.message.options[dhcpwire.HOST_NAME] == b"box"
        second = sent(made.take(answer(first.message, OFFER), 0.1))
        assert (second.message.kind, second.server) == (REQUEST, "")
        assert second.message.options[dhcpwire.REQUESTED_ADDRESS] == packed(ADDRESS)
        assert second.message.options[dhcpwire.SERVER_IDENTIFIER] == packed(SERVER)
        ack = answer(second.message, ACK)
        assert made.take(ack, 0.2) == [Configure(lease=read_lease(ack))]
        assert isinstance(made.state, Bound)
        assert made.due == pytest.approx(500.1)  # counted from the REQUEST

    def test_it_asks_again_with_longer_pauses(self) -> None:
        made, at, pauses = client(), 0.0, []
        for _ in range(9):
            made.tick(at)
            pauses.append(round(made.due - at))
            at = made.due
        assert pauses == [1, 2, 4, 8, 16, 32, 64, 64, 64]
        assert isinstance(made.state, Looking)

    def test_seconds_since_it_began(self) -> None:
        made = client(100)
        made.tick(100)
        assert sent(made.tick(made.due)).message.seconds == 1

    def test_a_server_that_offers_and_says_no_more(self) -> None:
        made = client()
        offered = answer(sent(made.tick(0)).message, OFFER)
        made.take(offered, 0)
        kinds = [sent(made.tick(made.due)).message.kind for _ in range(4)]
        assert kinds == [REQUEST, REQUEST, REQUEST, DISCOVER]

    def test_a_server_that_refuses_what_it_offered_is_not_asked_at_once(self) -> None:
        made = client()
        request = sent(made.take(answer(sent(made.tick(0)).message, OFFER), 0)).message
        assert made.take(answer(request, NAK), 1) == []
        assert made.due == 1 + NAK_PAUSE_S
        assert sent(made.tick(made.due)).message.xid != request.xid

    def test_answers_that_are_not_for_us(self) -> None:
        made = client()
        discover = sent(made.tick(0)).message
        assert made.take(answer(discover.but(xid=discover.xid + 1), OFFER), 0) == []
        assert made.take(answer(discover.but(mac=bytes(6)), OFFER), 0) == []
        assert made.take(answer(discover, ACK), 0) == []
        assert made.take(answer(discover, OFFER, address="0.0.0.0"), 0) == []
        request = sent(made.take(answer(discover, OFFER), 0)).message
        assert made.take(answer(request, ACK, server=OTHER), 0) == []
        assert made.take(answer(request, ACK, address="10.0.0.51"), 0) == []
        assert made.take(answer(request, NAK, server=OTHER), 0) == []
        assert isinstance(made.state, Asking)


class TestKeepingIt:
    def test_renewed_at_t1_by_its_server(self) -> None:
        made, lease = bound()
        assert made.tick(499) == []
        again = sent(made.tick(500))
        assert (again.server, again.message.client, again.message.kind) == (SERVER, ADDRESS, REQUEST)
        assert not {dhcpwire.REQUESTED_ADDRESS, dhcpwire.SERVER_IDENTIFIER} & again.message.options.keys()
        assert isinstance(made.state, Renewing)
        assert made.take(answer(again.message, ACK), 501) == [Configure(lease=lease)]
        assert made.due == 1000

    def test_rebound_at_t2_by_anybody(self) -> None:
        made, _ = bound()
        made.tick(500)
        while isinstance(made.state, Renewing):
            asked = sent(made.tick(made.due))
        assert isinstance(made.state, Rebinding)
        assert (asked.server, asked.message.client) == ("", ADDRESS)
        renewed = made.take(answer(asked.message, ACK, server=OTHER), 900)
        assert isinstance(renewed[0], Configure)
        assert renewed[0].lease.server == OTHER

    def test_times_of_the_server(self) -> None:
        made, lease = bound(o58=struct.pack("!I", 7), o59=struct.pack("!I", 9))
        assert (lease.renew, lease.rebind, made.due) == (7, 9, 7)

    def test_nobody_renews(self) -> None:
        made, _ = bound()
        actions: list[Action] = []
        while not any(isinstance(action, Lose) for action in actions):
            actions = made.tick(made.due)
        assert 999 <= made.due <= 1002
        assert sent(actions).message.kind == DISCOVER
        assert made.lease is None

    @pytest.mark.parametrize("rebinding", [False, True])
    def test_taken_back(self, rebinding: bool) -> None:
        made, _ = bound()
        asked = sent(made.tick(500)).message
        while rebinding and not isinstance(made.state, Rebinding):
            asked = sent(made.tick(made.due)).message
        lost = made.take(answer(asked, NAK), 950)
        assert isinstance(lost[0], Lose)
        assert sent(lost).message.kind == DISCOVER

    def test_for_ever(self) -> None:
        made, _ = bound(o51=b"\xff" * 4)
        assert made.due == NEVER
        made, _ = bound(o51=b"")
        assert made.due == NEVER

    def test_given_back(self) -> None:
        made, _ = bound()
        release = sent(made.release())
        assert (release.message.kind, release.server, release.message.client) == (RELEASE, SERVER, ADDRESS)
        assert client().release() == []

    def test_asked_for_early(self) -> None:
        made, _ = bound()
        assert sent(made.renew(10)).server == ""
        assert isinstance(made.state, Rebinding)
        assert client().renew(0) == []


class TestLeases:
    def lease(self, **options: bytes) -> Lease:
        return self.at(ADDRESS, **options)

    def at(self, address: str, **options: bytes) -> Lease:
        return read_lease(answer(Message(xid=1, mac=MAC, options={}), ACK, address, server=SERVER, **options))

    def test_without_dns_without_router(self) -> None:
        lease = self.lease()
        assert (lease.cidr, lease.routes, lease.nameservers, lease.search, lease.mtu) == ("10.0.0.50/24", (), (), (), 0)

    def test_with_everything(self) -> None:
        lease = self.lease(o3=packed("10.0.0.1", "10.0.0.9"), o6=packed("10.0.0.1", "0.0.0.0", "1.1.1.1"),
                           o15=b"corp.example\0", o26=struct.pack("!H", 1400))
        assert lease.routes == (Route(destination="0.0.0.0/0", gateway="10.0.0.1"),)
        assert lease.nameservers == ("10.0.0.1", "1.1.1.1")
        assert (lease.search, lease.mtu) == (("corp.example",), 1400)

    def test_classless_routes_replace_the_router(self) -> None:
        # The examples of RFC 3442, and a route on the link itself.
        routes = bytes((0,)) + packed("10.0.0.1") + bytes((25, 10, 17, 0, 128)) + packed("10.0.0.2")
        lease = self.lease(o3=packed("10.0.0.9"), o121=routes + bytes((8, 11)) + packed("0.0.0.0"))
        assert lease.routes == (Route(destination="0.0.0.0/0", gateway="10.0.0.1"),
                                Route(destination="10.17.0.128/25", gateway="10.0.0.2"),
                                Route(destination="11.0.0.0/8"))

    def test_search_domains_with_pointers(self) -> None:
        value = b"\x03eng\x05apple\x03com\0\x09marketing\xc0\x04"  # the example of RFC 3397
        assert self.lease(o119=value, o15=b"other").search == ("eng.apple.com", "marketing.apple.com")

    @pytest.mark.parametrize("name", [b"a\nnameserver 6.6.6.6", b"a;b", b".", b"", "ä".encode(), b"a\0b"])
    def test_names_that_would_write_a_resolv_conf_of_their_own(self, name: bytes) -> None:
        assert self.lease(o15=name).search == ()

    @pytest.mark.parametrize(("address", "prefix"), [("10.1.1.1", 8), ("172.16.1.1", 16), ("192.168.1.1", 24)])
    def test_without_a_mask(self, address: str, prefix: int) -> None:
        assert self.at(address, o1=b"").prefix == prefix

    @pytest.mark.parametrize("options", [{"o1": packed("255.0.255.0")}, {"o1": bytes(4)}, {"o54": b""}, {"o54": b"abc"},
                                         {"o119": b"\xc0\x00"}, {"o119": b"\x05ab"}, {"o121": b"\x21"}])
    def test_what_is_no_lease(self, options: dict[str, bytes]) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
            self.lease(**options)

    @pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"])
    def test_addresses_that_nobody_can_have(self, address: str) -> None:
        with pytest.raises(ValueError, match="an offer of"):
            self.at(address)

    def test_requests_for_it(self) -> None:
        lease = self.lease(o3=packed("10.0.0.1"), o26=struct.pack("!H", 1400))
        wanted = [request.what for request in requests_for(lease, 3, "eth0", Interface(mac="02:00:00:00:00:01"))]
        assert wanted == [
            "switch on eth0 with MTU 1400", "address 10.0.0.50/24 on eth0",
            "route to 0.0.0.0/0 by 10.0.0.1 on eth0"]  # fmt: skip
        own = Interface(mac="02:00:00:00:00:01", mtu=9000, gateway4="10.0.0.7")
        assert [request.what for request in requests_for(lease, 3, "eth0", own)] == ["address 10.0.0.50/24 on eth0"]


class TestTheWire:
    def test_a_request_reads_back(self) -> None:
        made = sent(client().tick(0)).message
        data = dhcpwire.write_request(made)
        assert len(data) >= 300
        assert data[:4] == b"\x01\x01\x06\x00"
        assert dhcpwire.read_reply(b"\x02" + data[1:]) == made

    def test_a_packet_has_the_checksums_that_its_receiver_computes(self) -> None:
        packet = dhcpwire.write_packet(b"payload")
        assert checksum(packet[:20]) == 0
        pseudo = packet[12:20] + bytes((0, 17)) + struct.pack("!H", len(packet) - 20)
        assert checksum(pseudo + packet[20:]) == 0

    def test_packets_for_others(self) -> None:
        packet = dhcpwire.write_packet(b"payload")
        assert dhcpwire.read_packet(packet) is None  # it is for the server's port
        ours = packet[:20] + packet[22:24] + packet[20:22] + packet[24:]
        assert dhcpwire.read_packet(ours) == b"payload"
        assert dhcpwire.read_packet(ours + b"padding of Ethernet") == b"payload"
        for at, value in ((9, 6), (6, 0x20), (0, 0x65), (25, 200)):
            assert dhcpwire.read_packet(ours[:at] + bytes((value,)) + ours[at + 1:]) is None

    def test_options_that_continue_in_other_fields(self) -> None:
        made = sent(client().tick(0)).message
        data = bytearray(dhcpwire.write_request(made.but(options={52: b"\x03", 15: b"a"})))
        data[0] = 2
        data[44:44 + 4] = bytes((15, 1)) + b"b" + b"\xff"
        data[108:108 + 4] = bytes((15, 1)) + b"c" + b"\xff"
        assert dhcpwire.read_reply(bytes(data)).options == {15: b"acb"}  # file before sname: RFC 2131, 4.1

    @given(st.binary(max_size=600))
    def test_anything_can_come(self, noise: bytes) -> None:
        dhcpwire.read_packet(noise)
        for data in (noise, b"\2\1\6" + bytes(233) + b"c\x82Sc" + noise):
            with suppress(ValueError):
                read_lease(dhcpwire.read_reply(data))


ANSWERS = st.sampled_from([OFFER, ACK, NAK, None, None])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(ANSWERS, st.sampled_from([SERVER, OTHER]), st.integers(10, 400), st.floats(0, 300)),
                max_size=60))
def test_whatever_servers_do_it_uses_no_address_that_is_not_its_own(
    story: list[tuple[int | None, str, int, float]]
) -> None:
    """Servers answer, or not, well or badly, early or late.  A lease is never used beyond its end, the machine always
    has a time at which it will do something, and asks no more often than it may."""
    made, now = client(), 0.0
    using: tuple[Lease, float] | None = None  # and when it was asked for, at the latest
    last: Message | None = None
    asked_at = 0.0
    for kind, server, seconds, pause in story:
        now = max(now, min(now + pause, made.due))
        actions = made.tick(now)
        if kind is not None and last is not None:
            said = answer(last, kind, server=server, o51=struct.pack("!I", seconds))
            actions += made.take(said, now)
        for action in actions:
            if isinstance(action, Send):
                last, asked_at = action.message, now
            elif isinstance(action, Configure):
                using = action.lease, asked_at
            else:
                using = None
        assert (using[0] if using else None) == made.lease
        if using is not None:
            assert now <= using[1] + using[0].seconds
            assert made.due <= using[1] + using[0].seconds
        assert made.due > now or made.tick(now)
        assert len([action for action in actions if isinstance(action, Send)]) <= 2
