"""The user-mode network: which addresses a machine gets, and how QEMU is told."""

import pytest

from imagebuild.oci.imageconfig import RunConfig
from tether.spec import Host, Identity, Interface, Network
from vch.errors import UsageError
from vch.options.run_options import parse_run
from vch.options.spec_plan import Placement, build_spec, user_addresses
from vch.qemu.user_network import DEFAULT_IPV6, addresses, family, has_default_route, netdev_words

MAC = "02:00:00:00:00:01"
IMAGE = RunConfig(env=(), entrypoint=None, cmd=("serve",), user="", working_dir="", stop_signal="", volumes=(),
                  exposed_ports=(), labels={}, healthcheck=None, shell=None)  # fmt: skip


def network(*words: str, host_has_ipv6: bool = False) -> Network:
    placement = Placement("0123456789abcdef", MAC, 2, host_has_ipv6=host_has_ipv6)
    nobody = Identity(entropy=b"", clock_ns=0)
    return build_spec(parse_run((*words, "image"), {}), IMAGE, placement, nobody).network


def test_what_slirp_gives_anyway_is_not_said() -> None:
    assert netdev_words(addresses(None, None, host_has_ipv6=False)) == ["ipv6=off"]


def test_another_ipv4_network() -> None:
    assert netdev_words(addresses("192.168.7.9", None, host_has_ipv6=False)) == [
        "net=192.168.7.0/24", "host=192.168.7.2", "dns=192.168.7.3", "dhcpstart=192.168.7.9", "ipv6=off"]


def test_ipv6_where_the_host_has_it() -> None:
    given = addresses(None, None, host_has_ipv6=True)
    assert given.v6 is not None
    assert given.v6.cidr == f"{DEFAULT_IPV6}/64"
    assert netdev_words(given) == [
        "ipv4=on", "ipv6=on", "ipv6-prefix=fec0::", "ipv6-prefixlen=64", "ipv6-host=fec0::2", "ipv6-dns=fec0::3"]


@pytest.mark.parametrize("text", [
    "10.0.2.0", "10.0.2.2", "10.0.2.3", "10.0.2.255", "224.0.0.9", "127.0.0.5", "fd00::2", "fd00::3", "fd00::",
    "fe80::9", "ff02::9", "::9:9/64", "",
])  # fmt: skip
def test_addresses_that_a_guest_cannot_have(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - some are ipaddress's own
        family(text)


def test_the_spec_without_options() -> None:
    assert network().interfaces == (
        Interface(mac=MAC, addresses=("10.0.2.15/24",), gateway4="10.0.2.2", announce=False),)
    assert network().nameservers == ("10.0.2.3",)


def test_the_spec_with_ipv6() -> None:
    made = network(host_has_ipv6=True)
    assert made.interfaces[0].addresses == ("10.0.2.15/24", "fec0::15/64")
    assert made.interfaces[0].gateway6 == "fec0::2"
    assert made.nameservers == ("10.0.2.3", "fec0::3")


def test_options_of_the_network() -> None:
    made = network("--ip", "172.20.1.9", "--ip6", "fd00:1::9", "--network-alias", "db", "--network-alias", "db2",
                   "--add-host", "up:host-gateway", "--domainname", "example.org", "--dns-opt", "ndots:3",
                   "--dns-option", "rotate")
    assert made.interfaces[0] == Interface(
        mac=MAC, addresses=("172.20.1.9/24", "fd00:1::9/64"), gateway4="172.20.1.2", gateway6="fd00:1::2",
        announce=False)
    assert made.aliases == ("db", "db2")
    assert made.hosts == (Host(address="172.20.1.2", names=("up",)),)
    assert made.domainname == "example.org"
    assert made.resolver_options == ("ndots:3", "rotate")


def test_the_mac_address() -> None:
    assert parse_run(("--mac-address", "02-00-00-00-00-Fe", "image"), {}).mac == "02:00:00:00:00:fe"
    assert user_addresses(parse_run(("image",), {}), False).v6 is None


@pytest.mark.parametrize(("words", "complaint"), [
    (("--mac-address", "02:00"), "is not a valid mac address"),
    (("--mac-address", "01:00:5e:00:00:01"), "is not the address of one interface"),
    (("--ip", "fd00::9"), "invalid IPv4 address"),
    (("--ip6", "10.0.2.9"), "invalid IPv6 address"),
    (("--ip", "10.0.2.2"), "is the host in the user network"),
    (("--network", "none", "--ip", "10.0.2.9"), "conflicting options: --ip and --network none"),
    (("--network", "none", "--network-alias", "x"), "conflicting options: --network-alias and --network none"),
])  # fmt: skip
def test_what_is_refused(words: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_run((*words, "image"), {})


ROUTES = """\
fec00000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 1 0 1 eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 1 0 00200200 lo
"""  # noqa: E501


def test_whether_the_host_has_ipv6() -> None:
    assert not has_default_route(ROUTES)
    assert not has_default_route("")
    assert has_default_route(ROUTES + "0" * 32 + " 00 " + "0" * 32 + " 00 fe80" + "0" * 27 + "1 400 1 0 3 eth0\n")
    assert not has_default_route("0" * 32 + " 00 " + "0" * 32 + " 00 " + "0" * 32 + " 400 1 0 200200 eth0\n")
