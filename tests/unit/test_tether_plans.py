"""What the agent decides before it makes a system call."""

from __future__ import annotations

import pytest

from tether.faults import TetherError, fault_of, one_line
from tether.kernel import kernelargs
from tether.kernel.memory import parse_oom_kills
from tether.kernel.modules import parse_demand
from tether.kernel.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY
from tether.kernel.sysctl import parameter_path
from tether.link.messages import Exited, Fault, Signalled
from tether.net import names
from tether.process import environment, pump
from tether.process.session import state_of
from tether.rootfs import root, volumes
from tether.rootfs.disks import BlockDevice, inventory, matching, partition_name, serial_of_vpd
from tether.rootfs.labels import label_of
from tether.rootfs.verity import verity_table
from tether.spec import Disk, Host, Interface, Layer, Network, Root, Tmpfs, Verity


def _layers(count: int) -> tuple[Layer, ...]:
    return tuple(Layer(disk=Disk(serial="image", partition=number + 1)) for number in range(count))


class TestRoot:
    def test_the_topmost_layer_comes_first_and_our_mount_points_before_it(self) -> None:
        plan = root.plan_root(Root(layers=_layers(3)))
        assert plan.overlay_options == "lowerdir=/i:/l/2:/l/1:/l/0,upperdir=/w/upper,workdir=/w/work"
        assert [at for _, at in plan.layers] == ["/l/0", "/l/1", "/l/2"]

    def test_the_most_layers_fit_into_a_page(self) -> None:
        assert len(root.plan_root(Root(layers=_layers(127))).overlay_options) < 4096

    def test_an_image_without_layers_is_an_empty_root(self) -> None:
        assert root.plan_root(Root(layers=())).overlay_options.startswith("lowerdir=/i,")

    def test_one_layer_too_many(self) -> None:
        with pytest.raises(TetherError, match="at most 255"):
            root.plan_root(Root(layers=_layers(256)))

    def test_an_unknown_filesystem_is_named_with_what_is_known(self) -> None:
        with pytest.raises(TetherError) as raised:
            root.plan_root(Root(layers=(Layer(disk=Disk(serial="a"), filesystem="ntfs"),)))
        assert "ntfs" in raised.value.text
        assert "erofs" in raised.value.hint

    def test_a_disk_that_is_the_whole_root_stands_alone(self) -> None:
        whole = Root(layers=(), whole=Disk(serial="all"))
        assert root.plan_root(whole).overlay_options == ""
        for other in (whole.but(layers=_layers(1)), whole.but(writable=Disk(serial="top"))):
            with pytest.raises(TetherError, match="neither layers nor a writable top"):
                root.plan_root(other)

    def test_options_that_would_be_cut_off_are_refused(self) -> None:
        with pytest.raises(TetherError, match="page"):
            root.overlay_options(["/a/long/path/to/a/layer"] * 200)


class TestLabels:
    EXT4 = bytes(0x38) + b"\x53\xef" + bytes(0x78 - 0x3A) + b"data".ljust(16, b"\0")

    def test_of_ext4(self) -> None:
        assert label_of(self.EXT4) == b"data"
        assert label_of(self.EXT4[:0x78] + b"x" * 16) == b"x" * 16

    @pytest.mark.parametrize("superblock", [b"", EXT4[:-1], bytes(200), EXT4.replace(b"\x53\xef", b"\xe2\xe1")])
    def test_of_what_is_none(self, superblock: bytes) -> None:
        assert label_of(superblock) is None


class TestVerity:
    HASH = "0123456789abcdef" * 4

    def test_the_table_says_where_the_tree_begins(self) -> None:
        table = verity_table("/dev/sda1", Verity(root_hash=self.HASH.upper(), data_size=3 * 4096))
        assert table == f"1 /dev/sda1 /dev/sda1 4096 4096 3 4 sha256 {self.HASH} -"

    @pytest.mark.parametrize(("digits", "size"), [("", 4096), (HASH[1:], 4096), (HASH[1:] + "x", 4096),
                                                  (HASH, 0), (HASH, 4097), (HASH, -4096)])
    def test_what_cannot_be_is_refused(self, digits: str, size: int) -> None:
        with pytest.raises(TetherError, match="verity"):
            verity_table("/dev/sda1", Verity(root_hash=digits, data_size=size))


class TestSysctl:
    @pytest.mark.parametrize(("key", "path"), [
        ("net.core.somaxconn", "net/core/somaxconn"),
        ("net/core/somaxconn", "net/core/somaxconn"),
        ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
    ])  # fmt: skip
    def test_dots_and_slashes(self, key: str, path: str) -> None:
        assert parameter_path(key) == f"/proc/sys/{path}"

    @pytest.mark.parametrize("key", ["", ".", "..", "../1/mem", "net..core", "kernel./.x", "a/../../b", "a/./b", "a\0"])
    def test_no_key_leads_elsewhere(self, key: str) -> None:
        with pytest.raises(TetherError, match="no name of a parameter"):
            parameter_path(key)


class TestDisks:
    DEVICES = (BlockDevice(name="sda", serial="image", scsi="0:0:0:0"), BlockDevice(name="vda", serial="rw"))

    def test_by_serial_and_by_address(self) -> None:
        devices = list(self.DEVICES)
        assert [device.name for device in matching(devices, Disk(serial="rw"))] == ["vda"]
        assert [device.name for device in matching(devices, Disk(scsi="0:0:0:0"))] == ["sda"]
        assert matching(devices, Disk(serial="other")) == []

    def test_partitions_are_named_as_the_kernel_does(self) -> None:
        assert partition_name("sda", 0) == "sda"
        assert partition_name("sda", 12) == "sda12"
        assert partition_name("nvme0n1", 2) == "nvme0n1p2"

    def test_serial_number_page(self) -> None:
        assert serial_of_vpd(b"\x00\x80\x00\x08disk-1  junk") == "disk-1"
        assert serial_of_vpd(b"") == ""

    def test_what_is_there_is_said_when_something_is_not(self) -> None:
        assert "sda (serial image, SCSI 0:0:0:0)" in inventory(list(self.DEVICES))
        assert "no disks" in inventory([])


class TestEnvironment:
    def test_defaults(self) -> None:
        env = environment.merged((), "box", terminal=False, home=b"/root")
        assert env == {b"PATH": environment.PATH, b"HOSTNAME": b"box", b"HOME": b"/root"}
        assert environment.merged((), "box", terminal=True, home=b"/")[b"TERM"] == b"xterm"

    def test_what_is_given_wins_and_the_last_of_a_name_counts(self) -> None:
        env = environment.merged((b"A=1", b"PATH=/bin", b"A=2", b"HOME=/h", b"E=", b"Q=a=b"), "box", False, b"/")
        assert env[b"A"] == b"2"
        assert env[b"PATH"] == b"/bin"
        assert env[b"HOME"] == b"/h"
        assert env[b"E"] == b""
        assert env[b"Q"] == b"a=b"

    def test_a_name_alone_takes_a_default_away(self) -> None:
        assert b"HOSTNAME" not in environment.merged((b"HOSTNAME", b"=x"), "box", False, b"/")

    def test_bytes_that_are_no_text_survive(self) -> None:
        assert environment.merged((b"X=\xff\n",), "box", False, b"/")[b"X"] == b"\xff\n"

    def test_where_a_program_is_looked_for(self) -> None:
        assert environment.candidates(b"sh", b"/bin::/usr/bin") == [b"/bin/sh", b"./sh", b"/usr/bin/sh"]
        assert environment.candidates(b"./sh", b"/bin") == [b"./sh"]


class TestNames:
    NETWORK = Network(
        hostname="web",
        domainname="example.org",
        interfaces=(Interface(mac="52:54:00:00:00:01", addresses=("10.0.2.15/24", "fd00::5/64")),),
        nameservers=("10.0.2.3", "1.1.1.1"),
        search=("a.test", "b.test"),
        resolver_options=("ndots:2",),
        hosts=(Host(address="10.9.8.7", names=("db", "db.internal")),),
    )

    def test_hosts(self) -> None:
        lines = names.hosts_text(self.NETWORK).decode().splitlines()
        assert lines[0] == "127.0.0.1\tlocalhost"
        assert "10.0.2.15\tweb.example.org web" in lines
        assert "fd00::5\tweb.example.org web" in lines
        assert lines[-1] == "10.9.8.7\tdb db.internal"

    def test_resolver(self) -> None:
        assert names.resolv_text(self.NETWORK) == (
            b"nameserver 10.0.2.3\nnameserver 1.1.1.1\nsearch a.test b.test\noptions ndots:2\n"
        )
        assert names.resolv_text(Network(hostname="x")) == b""

    def test_hostname(self) -> None:
        assert names.hostname_text(self.NETWORK) == b"web\n"


class TestTmpfs:
    STRICT = MS_NOSUID | MS_NODEV | MS_NOEXEC

    def test_docker_default(self) -> None:
        mount = volumes.tmpfs_mount(Tmpfs(path=b"/t"))
        assert (mount.kind, mount.flags, mount.options) == ("tmpfs", self.STRICT, "")

    def test_words_that_are_flags_and_words_that_are_not(self) -> None:
        mount = volumes.tmpfs_mount(Tmpfs(path=b"/t", options="ro,exec,size=64m,mode=1777"))
        assert mount.flags == MS_RDONLY | MS_NOSUID | MS_NODEV
        assert mount.options == "size=64m,mode=1777"


class TestKernelArguments:
    def test_ours_among_the_kernels(self) -> None:
        found = kernelargs.parse("console=ttyS0 quiet tether.debug tether.link=a.b.c tether.off=reset\n")
        assert found == kernelargs.KernelArguments(debug=True, link="virtio:a.b.c", reset_at_end=True)
        assert kernelargs.parse("quiet") == kernelargs.KernelArguments()

    def test_an_unknown_word_of_ours_is_an_error(self) -> None:
        with pytest.raises(TetherError, match="tether.lnk"):
            kernelargs.parse("tether.lnk=x")

    @pytest.mark.parametrize("link", ["virtio:a.b", "uart:ttyS1", "vsock:2:1024", "vsock:listen:1024"])
    def test_kinds_of_link(self, link: str) -> None:
        assert kernelargs.parse(f"tether.link={link}").link == link

    def test_an_unknown_kind_of_link_is_an_error(self) -> None:
        with pytest.raises(TetherError, match="pigeon"):
            kernelargs.parse("tether.link=pigeon:home")


class TestFaults:
    def test_an_error_of_the_system_names_object_and_errno(self) -> None:
        fault = fault_of("mount root", FileNotFoundError(2, "No such file or directory", b"/dev/\xff"))
        assert fault == Fault(step="mount root", object="/dev/\\xff", text="No such file or directory", errno="ENOENT")

    def test_ours_brings_its_hint(self) -> None:
        fault = fault_of("exec", TetherError("nosuch", "not found", 2, "check the command"))
        assert one_line(fault) == "tether: exec: nosuch: not found [ENOENT] (check the command)"

    def test_a_bug_names_its_place(self) -> None:
        try:
            int("x")
        except ValueError as error:
            fault = fault_of("serve", error)
        assert "test_tether_plans.py" in fault.object
        assert "bug" in fault.hint


def test_modules_on_demand() -> None:
    text = "isofs cdrom.ko isofs.ko\nsr_mod cdrom.ko sr_mod.ko\n\n"
    assert parse_demand(text) == {"isofs": ["cdrom.ko", "isofs.ko"], "sr_mod": ["cdrom.ko", "sr_mod.ko"]}
    assert parse_demand("") == {}


def test_wait_status() -> None:
    assert state_of(3 << 8) == Exited(code=3)
    assert state_of(9) == Signalled(number=9)
    assert state_of(11 | 0x80) == Signalled(number=11, core=True)


def test_oom_counter() -> None:
    assert parse_oom_kills(b"pgfault 5\noom_kill 2\noom_killx 9\n") == 2
    assert parse_oom_kills(b"pgfault 5\n") == 0


def test_a_pipe_holds_more_than_one_turn_of_the_loop_takes() -> None:
    assert pump.PIPE_SIZE >= pump.AT_ONCE * pump.CHUNK
