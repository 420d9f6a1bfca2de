"""The agent, seen from outside: what it answers, and what the programs of a real image find."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.harness import Container, container
from tether.link.messages import Resize, Signal
from tether.spec import Disk, Host, Layer, Root, Terminal
from vch.errors import GuestError
from vch.machine.session import Stdio

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def image(home: Path, demo_layout: Path) -> str:
    """The demo image by its layout."""
    return f"oci:{demo_layout}:demo"


@pytest.fixture(scope="module")
def busy(image: str) -> Iterator[Container]:
    """A container that only waits, for tests that run processes in it and leave nothing behind."""
    with container("--tmpfs", "/scratch:size=1m", "-v", "/root", "--hostname", "box", image, "sleep", "100000") as made:
        yield made


class TestRoot:
    def test_root_is_an_overlay_and_nothing_of_ours_is_in_it(self, busy: Container) -> None:
        assert busy.sh("awk '$2 == \"/\" {print $3}' /proc/mounts").out == "overlay\n"
        assert busy.sh("ls /").out.split() == "bin dev etc proc root scratch sys tmp usr var".split()

    def test_pseudo_filesystems(self, busy: Container) -> None:
        lines = [line.split() for line in busy.sh("cat /proc/mounts").out.splitlines()]
        kinds = {line[1]: line[2] for line in lines}
        for path, kind in {"/proc": "proc", "/sys": "sysfs", "/sys/fs/cgroup": "cgroup2", "/dev": "tmpfs",
                           "/dev/pts": "devpts", "/dev/shm": "tmpfs", "/dev/mqueue": "mqueue"}.items():
            assert kinds[path] == kind, path
        assert kinds["/scratch"] == "tmpfs"
        assert kinds["/root"] == "ext4"

    def test_devices(self, busy: Container) -> None:
        listed = busy.sh("cd /dev; ls -d *; stat -c '%n %a %t:%T' null zero full random urandom tty")
        assert {"fd", "stdin", "stdout", "stderr", "ptmx", "pts", "shm", "mqueue"} <= set(listed.out.split())
        assert "null 666 1:3" in listed.out
        assert "tty 666 5:0" in listed.out
        assert busy.sh("echo x > /dev/null && head -c 5 /dev/zero | wc -c && echo hi > /dev/stdout").out == "5\nhi\n"

    def test_files_that_name_things(self, busy: Container) -> None:
        assert busy.sh("hostname; cat /etc/hostname").out == "box\nbox\n"
        assert "10.0.2.15\tbox" in busy.sh("cat /etc/hosts").out
        assert busy.sh("cat /etc/resolv.conf").out.startswith("nameserver ")

    def test_network(self, busy: Container) -> None:
        assert "inet 10.0.2.15/24" in busy.sh("ip -4 addr show eth0").out
        assert busy.sh("ip route").out.startswith("default via 10.0.2.2 dev eth0")
        assert "inet 127.0.0.1/8" in busy.sh("ip -4 addr show lo").out

    def test_a_volume_is_filled_from_the_image_and_has_no_lost_found(self, busy: Container) -> None:
        assert busy.sh("ls -A /root; stat -c %a /root").out == "700\n"

    def test_filling_dev_or_the_hosts_file_hurts_nobody(self, busy: Container) -> None:
        assert busy.sh("dd if=/dev/zero of=/dev/fill bs=1M count=100; rm /dev/fill").code == 0
        assert busy.sh("yes > /etc/hosts").code != 0
        assert busy.sh("echo 127.0.0.1 localhost > /etc/hosts; cat /etc/hosts").out == "127.0.0.1 localhost\n"
        assert busy.machine.ping().monotonic_ns > 0

    def test_the_clock_is_the_hosts(self, busy: Container) -> None:
        assert abs(busy.machine.ping().realtime_ns - time.time_ns()) < 30e9


class TestSessions:
    def test_exit_codes_and_streams(self, busy: Container) -> None:
        done = busy.sh("echo out; echo err >&2; exit 7")
        assert (done.code, done.out, done.err) == (7, "out\n", "err\n")
        assert busy.sh("kill -SEGV $$").code == 128 + 11

    def test_environment(self, busy: Container) -> None:
        env = busy.exec("env", env=(b"A=1", b"B=x y", b"A=2")).out.splitlines()
        assert {"A=2", "B=x y", "HOME=/root", "HOSTNAME=box"} <= set(env)
        assert any(line.startswith("PATH=/usr/local/sbin:") for line in env)
        assert not any(line.startswith("TERM=") for line in env)

    def test_bytes_that_are_no_text(self, busy: Container) -> None:
        raw = busy.exec("printenv" if busy.sh("which printenv").code == 0 else "env", env=(b"RAW=\xff\xfe",)).out
        assert "RAW=\udcff\udcfe" in raw

    def test_user(self, busy: Container) -> None:
        assert busy.exec("id", user="nobody").out.startswith("uid=65534(nobody) gid=65534(nogroup)")
        assert busy.exec("id", user="1234:5678").out == "uid=1234 gid=5678 groups=5678\n"
        assert busy.sh("echo hi > /dev/stdout", user="nobody").out == "hi\n"

    def test_working_directory(self, busy: Container) -> None:
        assert busy.exec("pwd", cwd=b"/usr/bin").out == "/usr/bin\n"

    @pytest.mark.parametrize(
        ("args", "changed", "expected"),
        [
            (("nosuch",), {}, ("exec", "ENOENT", "executable file not found in $PATH")),
            (("/no/such",), {}, ("exec", "ENOENT", "no such file or directory")),
            (("/etc",), {}, ("exec", "EACCES", "is a directory")),
            (("/etc/passwd",), {}, ("exec", "EACCES", "permission denied")),
            (("id",), {"user": "ghost"}, ("user", "EINVAL", "no matching entries in passwd file")),
            (("id",), {"cwd": b"/no/such"}, ("working directory", "ENOENT", "No such file or directory")),
            ((), {}, ("exec", "EINVAL", "is empty")),
        ],
    )
    def test_what_cannot_be_executed(
        self, busy: Container, args: tuple[str, ...], changed: dict[str, object], expected: tuple[str, str, str]
    ) -> None:
        with pytest.raises(GuestError) as raised:
            busy.exec(*args, **changed)
        fault = raised.value.fault
        assert (fault.step, fault.errno, fault.text) == expected

    def test_a_program_whose_interpreter_is_missing(self, busy: Container) -> None:
        busy.sh("printf '#!/no/such\\n' > /tmp/script; chmod +x /tmp/script")
        with pytest.raises(GuestError) as raised:
            busy.exec("/tmp/script")
        assert "does not exist" in raised.value.fault.text

    def test_signals_and_sizes_of_what_is_not_there(self, busy: Container) -> None:
        for message in (Signal(session=4711, number=15), Resize(session=0, rows=1, columns=1)):
            with pytest.raises(GuestError):
                busy.machine.tell(message).result(60)

    def test_ignored_signals_are_not_inherited(self, busy: Container) -> None:
        said = busy.exec("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status").out  # (a shell would ignore SIGQUIT)
        assert all(int(line.split()[1], 16) == 0 for line in said.splitlines()), said

    def test_limits(self, busy: Container) -> None:
        assert busy.sh("ulimit -n; umask").out == "1048576\n0022\n"

    def test_no_descriptors_leak(self, busy: Container) -> None:
        assert busy.sh("ls /proc/self/fd").out.split() == ["0", "1", "2", "3"]  # 3: the folder that ls reads


class TestTerminal:
    def test_size_name_and_owner(self, busy: Container) -> None:
        script = "stty size; tty; stat -c %U $(tty)"
        done = busy.sh(script, terminal=Terminal(rows=33, columns=99), user="nobody")
        assert done.out.replace("\r\n", "\n") == "33 99\n/dev/pts/0\nnobody\n"

    def test_the_terminal_is_the_controlling_one(self, busy: Container) -> None:
        assert busy.sh("echo to the terminal > /dev/tty", terminal=Terminal()).out == "to the terminal\r\n"

    def test_term(self, busy: Container) -> None:
        assert busy.sh("echo $TERM", terminal=Terminal()).out == "xterm\r\n"


class TestPid1:
    def test_orphans_are_reaped(self, busy: Container) -> None:
        busy.sh("i=0; while [ $i -lt 300 ]; do (sleep 0.2 &) ; i=$((i+1)); done")
        busy.until("grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l", "0")

    def test_it_cannot_be_killed_from_inside(self, busy: Container) -> None:
        assert busy.sh("for n in 9 1 13 10 11 14; do kill -$n 1; done").code == 0
        assert busy.machine.ping().monotonic_ns > 0

    def test_memory_stays_small(self, busy: Container) -> None:
        assert busy.resident_kib() < 16 * 1024


def test_a_fork_bomb_ends_with_the_container(image: str) -> None:
    with container("--network", "none", image, "sh", "-c", "f() { f | f & }; f; sleep 2; exit 4") as bomb:
        assert bomb.wait().code == 4
        assert bomb.machine.ping().monotonic_ns > 0


def test_the_oom_killer_takes_the_container_first(image: str) -> None:
    with container("-m", "128m", "--network", "none", image, "tail", "/dev/zero") as hungry:
        assert hungry.wait().code == 137
        assert hungry.primary is not None
        assert hungry.primary.ended.result(1).oom_killed
        assert hungry.machine.ping().monotonic_ns > 0


def test_everything_dies_with_the_primary_process(image: str) -> None:
    script = "(trap '' TERM HUP; sleep 1000) & echo started; kill -9 -1; sleep 0.2; exit 3"
    with container("--network", "none", image, "sh", "-c", script) as short:
        done = short.wait()
        assert (done.code, done.out) == (3, "started\n")
        with pytest.raises(GuestError, match="not running"):
            short.exec("true")


def test_stop_signal_then_kill(image: str) -> None:
    with container("--network", "none", image, "sh", "-c", "trap '' TERM; echo up; sleep 1000 & wait; wait") as deaf:
        deaf.until_says("up")
        began = time.monotonic()
        deaf.machine.stop(1.0, "the test is over")
        assert deaf.wait().code == 137
        deaf.machine.join(60)
        assert time.monotonic() - began < 60


def test_a_read_only_root(image: str) -> None:
    script = "touch /x; touch /etc/hosts; echo y > /scratch/y && cat /scratch/y"
    with container("--read-only", "--tmpfs", "/scratch", "--network", "none", image, "sh", "-c", script) as sealed:
        done = sealed.wait()
        assert done.out == "y\n"
        assert done.err.count("Read-only file system") == 2


def test_a_disk_that_is_missing_is_named_with_those_that_are_there(image: str) -> None:
    root = Root(layers=(Layer(disk=Disk(serial="elsewhere")),))
    with container("--network", "none", image, "true", change={"root": root}, start=False) as lost:
        with pytest.raises(GuestError) as raised:
            lost.start()
        fault = raised.value.fault
        assert (fault.step, fault.object, fault.errno) == ("mount layers", "disk with serial elsewhere", "ENODEV")
        assert "serial top" in fault.hint


def test_more_of_the_spec(image: str) -> None:
    with container("--add-host", "db:10.9.8.7", "--dns", "10.0.2.3", "--dns-search", "x.test", "-w", "/made/here",
                   "-e", "A=b", image, "sh", "-c", "pwd; echo $A; tail -1 /etc/hosts; cat /etc/resolv.conf") as made:
        assert Host(address="10.9.8.7", names=("db",)) in made.spec.network.hosts
        assert made.wait().out == "/made/here\nb\n10.9.8.7\tdb\nnameserver 10.0.2.3\nsearch x.test\n"


def test_neither_floods_nor_traps_hold_up_the_agent(image: str) -> None:
    with container("--network", "none", image, "sleep", "1000") as quiet:
        flood, _ = quiet.machine.exec(quiet.process("yes"), Stdio())
        assert quiet.sh("echo still here").out == "still here\n"
        flood.signal(9)
        assert flood.wait(60) == 137
        quiet.sh("rm /etc/group; mkfifo /etc/group")
        with pytest.raises(GuestError, match="not a regular file"):
            quiet.exec("id")
        assert quiet.machine.ping().monotonic_ns > 0
