"""The network of a container VM, seen by others: dnsmasq and slirp give the addresses, tcpdump and ping look on from
outside, and busybox's ip tells what the guest's kernel knows.

One VM for all: one NIC is in the user network, the other in a network namespace of this host.  The kernel finds the
latter first and calls it eth0, the spec names the former first: what counts is the MAC address.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.judge_network import HOST4, HOST6, CannotMakeNetwork, JudgeNetwork
from tests.vm.conftest import Vch
from tests.vm.harness import MAC, Container, container
from tests.vm.run_helpers import tcp_port
from tether.link.late_messages import AddInterface, InterfaceUp, RemoveInterface, SetNames
from tether.spec import Host, Interface, Network, Route
from vch.errors import GuestError, MachineError
from vch.machine.session import Stdio

pytestmark = pytest.mark.vm

MAC2, MAC3, NOBODY = "02:00:00:00:00:02", "02:00:00:00:00:03", "02:00:00:00:00:77"
RANGE = "10.99.0.50,10.99.0.59"
OPTIONS = (
    f"--dhcp-option=option:dns-server,{HOST4},10.99.0.9",
    "--dhcp-option=option:domain-search,a.example,b.example",
    "--dhcp-option=option:mtu,1400",
    f"--dhcp-option=121,10.20.0.0/16,10.99.0.3,192.168.77.0/24,0.0.0.0,10.30.0.0/16,{HOST4}",
    "--dhcp-option-force=58,4",  # T1 and T2, in seconds
    "--dhcp-option-force=59,100",
)
NETWORK = Network(
    hostname="box",
    interfaces=(
        Interface(
            mac=MAC,
            addresses=("10.0.2.15/24", "10.0.2.77/24", "fec0::15/64"),
            gateway4="10.0.2.2",
            routes=(
                Route(destination="10.200.0.0/16", gateway="10.0.2.9", metric=50, source="10.0.2.77"),
                Route(destination="10.201.0.0/16"),
                Route(destination="fd77::/64", gateway="fec0::9"),
            ),
            mtu=1300,
            announce=False,
        ),
        Interface(mac=MAC2, addresses=("fd00:99::5/64", "10.99.0.200/24"), dhcp=True, check_duplicates=True),
    ),
    aliases=("www",),
)
YES_S, NO_S = 60, 3  # how long to wait for what must be, and for what must not
ADDED = Interface(mac=MAC3, dhcp=True)
BACKEND = {"type": "user", "ipv6": False, "net": "10.7.0.0/24"}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeNetwork]:
    try:
        made = JudgeNetwork(tmp_path_factory.mktemp("judge"))
    except CannotMakeNetwork as reason:
        pytest.skip(str(reason))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def box(home: Path, demo_layout: Path, judge: JudgeNetwork) -> Iterator[Container]:
    judge.dhcp_server(RANGE, *OPTIONS)
    judge.capture()
    second = ("-netdev", f"tap,id=tap,fd={judge.tap}", "-device", f"virtio-net-pci,netdev=tap,mac={MAC2},romfile=")
    with container(f"oci:{demo_layout}:demo", "sleep", "100000", change={"network": NETWORK}, devices=second,
                   device_fds=(judge.tap,)) as made:  # fmt: skip
        yield made


def leased(box: Container, tens: int = 5) -> str:
    """The address that DHCP gave: 10.99.0.50 to 59, later 10.99.0.150 to 159."""
    found = re.search(rf"inet (10\.99\.0\.{tens}\d)/24", box.sh("ip -4 addr show eth0").out)
    assert found is not None
    return found[1]


class TestStatic:
    def test_several_addresses_and_the_mtu(self, box: Container) -> None:
        said = box.sh("ip addr show eth1").out
        assert "mtu 1300" in said
        for address in ("inet 10.0.2.15/24", "inet 10.0.2.77/24", "inet6 fec0::15/64"):
            assert address in said

    def test_routes(self, box: Container) -> None:
        routes = [line.strip() for line in box.sh("ip route; ip -6 route").out.splitlines()]
        assert "default via 10.0.2.2 dev eth1" in routes
        assert "10.200.0.0/16 via 10.0.2.9 dev eth1  src 10.0.2.77  metric 50" in routes
        assert "10.201.0.0/16 dev eth1 scope link" in routes
        assert any(route.startswith("fd77::/64 via fec0::9 dev eth1") for route in routes)

    def test_routers_that_nobody_asked_change_nothing(self, box: Container) -> None:
        assert box.sh("cat /proc/sys/net/ipv6/conf/eth1/accept_ra").out == "0\n"

    def test_hosts(self, box: Container) -> None:
        lines = box.sh("cat /etc/hosts").out.splitlines()
        for address in ("10.0.2.15", "10.0.2.77", "fec0::15", "fd00:99::5", "10.99.0.200", leased(box)):
            assert f"{address}\tbox www" in lines


class TestDhcp:
    def test_the_lease_is_what_the_server_gave(self, box: Container, judge: JudgeNetwork) -> None:
        judge.until(lambda: judge.said("leases").count("\n") == 1, "the lease")  # dnsmasq just writes it anew
        _, mac, address, name, _ = judge.said("leases").split()
        assert (mac, address, name) == (MAC2, leased(box), "box")
        assert "mtu 1400" in box.sh("ip link show eth0").out

    def test_classless_routes(self, box: Container) -> None:
        said = box.sh("ip route").out
        assert re.search(rf"10\.20\.0\.0/16 via 10\.99\.0\.3 dev eth0 +src {leased(box)}", said)
        assert re.search(r"192\.168\.77\.0/24 dev eth0 scope link", said)
        assert re.search(r"10\.30\.0\.0/16 via 10\.99\.0\.1 dev eth0", said)
        assert said.count("default") == 1

    def test_resolv_conf(self, box: Container) -> None:
        wanted = f"nameserver {HOST4}\nnameserver 10.99.0.9\nsearch a.example b.example\n"
        assert box.sh("cat /etc/resolv.conf").out == wanted

    def test_it_is_reached(self, box: Container, judge: JudgeNetwork) -> None:
        for address in (leased(box), "10.99.0.200", "fd00:99::5"):
            assert " 0% packet loss" in judge.run("busybox", "ping", "-c", "1", "-w", "60", address)

    def test_the_lease_is_renewed(self, box: Container, judge: JudgeNetwork) -> None:
        address = leased(box)
        before = judge.said("dnsmasq.log")
        judge.until(lambda: judge.said("dnsmasq.log").count("DHCPACK") >= before.count("DHCPACK") + 2, "two renewals")
        assert leased(box) == address
        assert judge.said("dnsmasq.log").count("DHCPDISCOVER") == before.count("DHCPDISCOVER")

    def test_a_lease_that_is_refused_is_replaced(self, box: Container, judge: JudgeNetwork) -> None:
        """The server comes back with other addresses, and knows nothing of the old ones."""
        before, server = leased(box), judge.running[0]
        judge.end(server)
        (judge.folder / "leases").unlink()
        judge.dhcp_server("10.99.0.150,10.99.0.159", "--dhcp-option=option:dns-server", "--dhcp-option=3")
        box.until("ip -4 addr show eth0 | grep -c 'inet 10.99.0.15[0-9]/24'", "1", 60)
        said = box.sh("ip addr show eth0; ip route; cat /etc/hosts").out
        assert before not in said
        assert "10.20.0.0/16" not in said
        assert re.search(r"10\.99\.0\.15\d\tbox www", said)
        assert box.sh("cat /etc/resolv.conf").out == ""  # a server without name servers is one, too


class TestAnnouncements:
    def test_after_the_start_and_when_asked(self, box: Container, judge: JudgeNetwork) -> None:
        def heard() -> tuple[int, int]:
            said = judge.said("capture.txt")
            arp = len(re.findall(r"Request who-has 10\.99\.0\.200 .*tell 10\.99\.0\.200", said))
            advertised = re.findall(r"fd00:99::5 > ff02::1: \[icmp6 sum ok\] ICMP6, neighbor advertisement.*", said)
            return arp, len(advertised)

        judge.until(lambda: min(heard()) >= 1, "the announcements after the start")
        first = heard()
        box.machine.announce()
        judge.until(lambda: all(now > then for now, then in zip(heard(), first, strict=True)), "an announcement")
        assert MAC2 in judge.run("ip", "neigh")

    def test_nobody_is_told_where_nobody_is(self, box: Container) -> None:
        assert not box.spec.network.interfaces[0].announce


class TestNames:
    def test_they_change_while_programs_run(self, box: Container) -> None:
        box.sh("echo '1.2.3.4 mine' >> /etc/hosts")
        before = box.sh("cat /etc/hosts").out
        names = SetNames(aliases=("db",), hosts=(Host(address="10.1.1.1", names=("a", "b")),),
                         nameservers=("10.0.2.3",), search=("x.test",), resolver_options=("ndots:2",))
        box.machine.set_names(names)
        after = box.sh("cat /etc/hosts").out
        assert "10.0.2.15\tbox db\n" in after
        assert "10.1.1.1\ta b\n" in after
        assert "1.2.3.4 mine\n" in after  # the container's own
        assert "www" in before
        assert "www" not in after
        assert box.sh("cat /etc/resolv.conf").out == "nameserver 10.0.2.3\nsearch x.test\noptions ndots:2\n"

    def test_a_reader_never_sees_half_of_it(self, box: Container) -> None:
        names = SetNames(nameservers=("10.0.2.3",))
        long = tuple(Host(address=f"10.3.0.{number}", names=(f"host-{number}",)) for number in range(100))
        script = "while [ ! -e /tmp/enough ]; do grep -c localhost /etc/hosts; done | sort | uniq -c"
        watching: list[str] = []
        reader = threading.Thread(target=lambda: watching.append(box.sh(script).out))
        reader.start()
        for turn in range(20):
            box.machine.set_names(names.but(hosts=long if turn % 2 else ()))
        box.sh("touch /tmp/enough")
        reader.join()
        assert {line.split()[1] for line in watching[0].splitlines()} == {"2"}

    def test_a_resolv_conf_that_the_container_has_made_its_own_is_left_alone(self, box: Container) -> None:
        box.sh("echo nameserver 9.9.9.9 > /etc/resolv.conf")
        box.machine.set_names(SetNames(nameservers=("10.0.2.3",), search=("y.test",)))
        assert box.sh("cat /etc/resolv.conf").out == "nameserver 9.9.9.9\n"


class TestHotPlug:
    def test_addresses_of_the_spec_as_soon_as_the_kernel_has_the_nic(self, box: Container) -> None:
        """Several times, because it is not always looked at while it is being registered."""
        for number in range(3):
            addresses = (f"10.7.0.{number + 9}/24", f"fd00:7::{number + 9}/64")
            up = box.machine.add_interface(Interface(mac=MAC3, addresses=addresses), BACKEND)
            assert up.addresses == addresses
            assert box.sh(f"cat /proc/sys/net/ipv6/conf/{up.name}/accept_ra").out == "0\n"
            box.machine.remove_interface(MAC3)
            box.until(f"ls /sys/class/net | grep -c {up.name}", "0")

    def test_a_nic_is_plugged_in_configured_and_unplugged(self, box: Container) -> None:
        for _ in range(2):
            up = box.machine.add_interface(ADDED, BACKEND)
            assert up.addresses == ("10.7.0.15/24",)
            said = box.sh(f"ip addr show {up.name}; ip route; cat /etc/hosts").out
            assert "inet 10.7.0.15/24" in said
            assert re.search(rf"default via 10\.7\.0\.2 dev {up.name} +src 10\.7\.0\.15 +metric 10\d", said)
            assert "10.7.0.15\tbox" in said
            box.machine.remove_interface(MAC3)
            box.until(f"ls /sys/class/net | grep -c {up.name}", "0")
            assert "10.7.0.15" not in box.sh("cat /etc/hosts").out

    def test_what_is_refused(self, box: Container) -> None:
        for message, complaint in (
            (AddInterface(interface=Interface(mac=MAC)), "is configured already"),
            (RemoveInterface(mac=NOBODY), "is not configured"),
        ):
            with pytest.raises(GuestError, match=complaint):
                box.machine.tell(message).result(60)
        with pytest.raises(MachineError, match="mac.*nonsense"):
            box.machine.add_interface(Interface(mac="nonsense"), BACKEND)


class TestHostileContainers:
    def test_a_container_that_takes_its_network_apart_harms_only_itself(self, box: Container) -> None:
        box.sh(f"ip addr del {leased(box, 15)}/24 dev eth0; ip link set eth0 down; : > /etc/hosts; rm -f /etc/hosts")
        assert box.sh("dd if=/dev/zero of=/etc/hosts bs=64k count=100").code != 0  # it is full at 1 MB
        box.machine.announce()
        box.machine.set_names(SetNames(aliases=("full",)))
        box.sh("echo > /etc/hosts; ip link set eth0 up")
        box.machine.tell(RemoveInterface(mac=MAC2)).result(60)
        up = box.machine.tell(AddInterface(interface=NETWORK.interfaces[1])).result(60)
        assert isinstance(up, InterfaceUp)
        assert len(up.addresses) == 3
        box.machine.set_names(SetNames(aliases=NETWORK.aliases))
        assert f"{leased(box, 15)}\tbox www\n" in box.sh("cat /etc/hosts").out


@pytest.fixture(scope="module")
def servers(box: Container, judge: JudgeNetwork) -> None:
    """Ports 80 and 81 of the container, port 99 of its neighbour."""
    judge.start("python3", "-u", "-m", "http.server", "99", "--bind", HOST4, output="http.txt")
    judge.until(lambda: "Serving HTTP" in judge.said("http.txt"), "the neighbour's server")
    script = "for port in 80 81; do while true; do echo port $port | nc -l -p $port; done & done; wait"
    box.machine.exec(box.process("sh", "-c", script), Stdio())


@pytest.mark.usefixtures("servers")
class TestFirewall:
    """(The second NIC is given other addresses from here on.)"""

    ADDRESS = "10.99.0.60"
    NIC = Interface(mac=MAC2, addresses=(f"{ADDRESS}/24", "fd00:99::60/64"), published=("80/tcp",))

    def be(self, box: Container, **changes: object) -> None:
        box.machine.tell(RemoveInterface(mac=MAC2)).result(60)
        box.machine.tell(AddInterface(interface=self.NIC.but(**changes))).result(60)

    def reached(self, judge: JudgeNetwork, port: int, seconds: int, address: str = ADDRESS) -> bool:
        return f"port {port}" in judge.run("busybox", "nc", "-w", str(seconds), address, str(port), check=False)

    def comes_through(self, judge: JudgeNetwork, port: int) -> None:
        """The guest's server answers once; until there is the next one, nobody listens."""
        judge.until(lambda: self.reached(judge, port, 5), f"port {port}")

    def reaches(self, box: Container, seconds: int) -> bool:
        said = box.sh(f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w {seconds} {HOST4} 99 | head -n 1").out
        assert said.strip() in ("", "HTTP/1.0 200 OK")
        return bool(said)

    def test_open(self, box: Container, judge: JudgeNetwork) -> None:
        self.be(box)
        self.comes_through(judge, 80)
        self.comes_through(judge, 81)

    def test_outbound(self, box: Container, judge: JudgeNetwork) -> None:
        self.be(box, firewall="outbound")
        assert self.reaches(box, YES_S)
        assert not self.reached(judge, 80, NO_S)

    def test_published(self, box: Container, judge: JudgeNetwork) -> None:
        self.be(box, firewall="published")
        assert self.reaches(box, YES_S)
        self.comes_through(judge, 80)
        assert not self.reached(judge, 81, NO_S)

    def test_peers(self, box: Container, judge: JudgeNetwork) -> None:
        self.be(box, firewall="peers", peers=(f"{HOST6}/128",))
        assert " 0% packet loss" in judge.run("busybox", "ping", "-c", "1", "-w", "60", "fd00:99::60")
        assert not self.reached(judge, 80, NO_S)
        assert not self.reaches(box, NO_S)

    def test_closed(self, box: Container, judge: JudgeNetwork) -> None:
        self.be(box, firewall="closed")
        assert not self.reached(judge, 80, NO_S)
        assert not self.reaches(box, NO_S)
        self.be(box)
        self.comes_through(judge, 80)  # nothing of it is left

    def test_what_is_refused(self, box: Container) -> None:
        for changes, complaint in (({"firewall": "nonsense"}, "is no level"), ({"firewall": "peers"}, "names no peers"),
                                   ({"firewall": "published", "published": ("80",)}, "is no port")):
            with pytest.raises(GuestError, match=complaint):
                self.be(box, **changes)
            box.machine.tell(AddInterface(interface=self.NIC)).result(60)


class TestDuplicates:
    def test_an_address_that_somebody_has_is_refused_and_another_one_is_fine(self, box: Container) -> None:
        box.machine.tell(RemoveInterface(mac=MAC2)).result(60)
        assert "inet" not in box.sh("ip addr show eth0").out
        duplicate = Interface(mac=MAC2, addresses=(f"{HOST6}/64",), check_duplicates=True)
        with pytest.raises(GuestError) as caught:
            box.machine.tell(AddInterface(interface=duplicate)).result(60)
        assert caught.value.fault.text == "another machine on this network has it"
        unique = duplicate.but(addresses=("fd00:99::42/64",), gateway6=HOST6)
        up = box.machine.tell(AddInterface(interface=unique)).result(60)
        assert isinstance(up, InterfaceUp)
        said = box.sh("ip addr show eth0").out
        assert re.search(r"fd00:99::42/64 scope global", said)
        assert not re.search(r"fd00:99::42/64 .*tentative", said)
        assert box.sh(f"ping -c 1 -w 60 {HOST6}").code == 0

    def test_what_does_not_come_is_named(self, box: Container, judge: JudgeNetwork) -> None:
        """No DHCP server, and no NIC: both are waited for side by side, and hold up nobody."""
        for process in list(judge.running):
            judge.end(process)
        box.machine.tell(RemoveInterface(mac=MAC2)).result(60)
        began = time.monotonic()
        no_server = box.machine.tell(AddInterface(interface=Interface(mac=MAC2, dhcp=True)))
        no_nic = box.machine.tell(AddInterface(interface=Interface(mac=NOBODY)))
        assert box.sh("echo meanwhile").out == "meanwhile\n"
        with pytest.raises(GuestError) as caught:
            no_nic.result(120)
        fault = caught.value.fault
        assert (fault.object, fault.errno) == (f"network interface {NOBODY}", "ENODEV"), fault
        assert time.monotonic() - began > 19
        assert f"eth0 ({MAC2})" in fault.hint
        with pytest.raises(GuestError) as caught:
            no_server.result(120)
        fault = caught.value.fault
        assert (fault.text, fault.errno) == ("no server gave an address within 30 s", "ETIMEDOUT")


def test_options_of_vch_run(vch: Vch, demo_layout: Path) -> None:
    """Addresses of the user network: the host is reached over IPv6, and a port is published at another address."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server, tcp_port() as published:
        hello = f"echo from {MAC3} | nc fd00:7::2 {server.getsockname()[1]}"
        script = f"ip -4 addr show eth0; cat /etc/hosts; {hello}; echo published | nc -l -p 80"
        words = ("--ip", "192.168.7.9", "--ip6", "fd00:7::9", "--mac-address", MAC3, "--network-alias", "db",
                 "-p", f"127.0.0.1:{published}:80")  # fmt: skip
        running = vch.start("run", *words, f"oci:{demo_layout}:demo", "sh", "-c", script)
        server.settimeout(120)
        connection, _ = server.accept()
        with connection:
            assert connection.makefile().readline() == f"from {MAC3}\n"
        deadline = time.monotonic() + 60
        said = b""
        while not said and time.monotonic() < deadline:
            with suppress(ConnectionError), socket.create_connection(("127.0.0.1", published), 10) as client:
                said = client.recv(100)  # nothing, or an error, while nobody listens in there yet
        out, _ = running.communicate(timeout=120)
    assert said == b"published\n"
    assert b"inet 192.168.7.9/24" in out
    assert re.search(rb"fd00:7::9\t\w+ db\n", out)
