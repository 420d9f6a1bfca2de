"""What a process is given: seen from inside, in /proc and by busybox, programs that are not ours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.harness import Container, container
from tether.link.messages import Exited
from tether.spec import CAPABILITIES, HealthCheck, Limit, Restart, Terminal
from vch.errors import GuestError
from vch.machine.session import Stdio
from vch.machine.sinks import Collector
from vch.options.process_values import DEFAULT_CAPABILITIES

pytestmark = pytest.mark.vm

ALL = (1 << len(CAPABILITIES)) - 1


@pytest.fixture(scope="module")
def image(home: Path, demo_layout: Path) -> str:
    """The demo image by its layout."""
    return f"oci:{demo_layout}:demo"


@pytest.fixture(scope="module")
def busy(image: str) -> Iterator[Container]:
    """A container that only waits, and says what it was given before."""
    script = "cat /proc/self/status /proc/self/limits; cat /proc/self/oom_score_adj; sleep 100000 & wait"
    with container("--ulimit", "nofile=100:200", "--ulimit", "core=-1", "--group-add", "nogroup", "--group-add", "77",
                   "--cap-drop", "CHOWN", "--cap-add", "net_admin", "--oom-score-adj", "300", "--hostname", "box",
                   "--security-opt", "no-new-privileges", "-e", "A=b", "-w", "/made/here",
                   "--tmpfs", "/t:size=1m", "--sysctl", "net.core.somaxconn=77", image, "sh", "-c", script) as made:
        yield made


def status(text: str) -> dict[str, str]:
    """The lines "Name: value" of /proc/PID/status."""
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in text.splitlines()) if colon}


def bits(*names: str) -> int:
    """A set of capabilities, as the kernel writes it."""
    return sum(1 << CAPABILITIES.index(name) for name in names)


class TestWhatRunGives:
    """Options of `vch run` as the primary process finds them."""

    def test_capabilities(self, busy: Container) -> None:
        busy.until_says("300\n")
        found = status(busy_output(busy))
        expected = bits("NET_ADMIN", *(name for name in DEFAULT_CAPABILITIES if name != "CHOWN"))
        assert [int(found[name], 16) for name in ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb")] == [
            expected, expected, expected, 0, 0]

    def test_the_rest(self, busy: Container) -> None:
        busy.until_says("300\n")
        said = busy_output(busy)
        found = status(said)
        assert found["NoNewPrivs"] == "1"
        assert found["Groups"] == "0 77 65534"
        limits = {line[:25].strip(): line[25:].split()[:2] for line in said.splitlines() if line.startswith("Max ")}
        assert limits["Max open files"] == ["100", "200"]
        assert limits["Max core file size"] == ["unlimited", "unlimited"]
        assert said.endswith("300\n")


    def test_what_the_oci_runtime_tools_look_at(self, busy: Container) -> None:
        """As `runtimetest` does, by /proc: user, directory, environment, root, mounts, parameters, host name."""
        assert busy.started is not None
        at = f"/proc/{busy.started.pid}"
        found = status(busy.sh(f"cat {at}/status").out)
        assert (found["Uid"].split(), found["Gid"].split()) == (["0"] * 4, ["0"] * 4)
        assert (found["PPid"], found["NSpid"], found["Seccomp"]) == ("1", str(busy.started.pid), "0")
        assert busy.sh(f"readlink {at}/cwd").out == "/made/here\n"
        assert set(busy.sh(f"tr '\\0' '\\n' < {at}/environ").out.split()) == {
            "PATH=/usr/bin:/bin", "HOSTNAME=box", "A=b", "HOME=/root"}  # the first is the image's
        mounts = {line.split()[1]: line.split()[2:4] for line in busy.sh(f"cat {at}/mounts").out.splitlines()}
        assert {path: kind for path, (kind, _) in mounts.items() if path in ("/", "/proc", "/sys", "/dev", "/t")} == {
            "/": "overlay", "/proc": "proc", "/sys": "sysfs", "/dev": "tmpfs", "/t": "tmpfs"}
        assert {"nosuid", "nodev", "noexec", "size=1024k"} <= set(mounts["/t"][1].split(","))
        assert {"nosuid", "nodev", "noexec"} <= set(mounts["/proc"][1].split(","))
        assert busy.sh("cat /proc/sys/net/core/somaxconn; hostname").out == "77\nbox\n"


def busy_output(made: Container) -> str:
    return bytes(made.out.content).decode()


class TestPrivileges:
    """What an exec asks for on its own."""

    def test_an_exec_that_asks_for_nothing_has_everything(self, busy: Container) -> None:
        found = status(busy.exec("cat", "/proc/self/status").out)
        assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == ALL
        assert (found["NoNewPrivs"], found["Umask"]) == ("0", "0022")

    def test_who_is_not_root_has_none(self, busy: Container) -> None:
        found = status(busy.exec("cat", "/proc/self/status", user="nobody", capabilities=("KILL",)).out)
        assert [int(found[name], 16) for name in ("CapBnd", "CapEff", "CapPrm", "CapAmb")] == [bits("KILL"), 0, 0, 0]

    def test_but_what_is_ambient(self, busy: Container) -> None:
        found = status(busy.exec("cat", "/proc/self/status", user="nobody", capabilities=("KILL", "CHOWN"),
                                 ambient=("CHOWN",)).out)
        assert [int(found[name], 16) for name in ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb")] == [
            bits("KILL", "CHOWN"), *[bits("CHOWN")] * 4]
        done = busy.sh("touch /tmp/mine; chown 12 /tmp/mine; stat -c %u /tmp/mine; rm -f /tmp/mine",
                       user="nobody", ambient=("CHOWN",))
        assert done.out == "12\n", done.err

    def test_the_default_set_keeps_hands_off_the_machine(self, busy: Container) -> None:
        script = ("mount -t tmpfs none /tmp; hostname other; dd if=/proc/1/mem of=/dev/null bs=1 count=1;"
                  " ls /proc/1/root; nc -z 127.0.0.1 1; chown 5 /tmp && chown 0 /tmp && echo changed")
        done = busy.sh(script, capabilities=DEFAULT_CAPABILITIES)
        assert done.out == "changed\n"
        assert done.err.count("ermi") >= 4, done.err  # EPERM or EACCES, in busybox's words

    def test_no_new_privileges(self, busy: Container) -> None:
        found = status(busy.exec("cat", "/proc/self/status", user="nobody", no_new_privileges=True).out)
        assert found["NoNewPrivs"] == "1"

    def test_groups_limits_umask_nice(self, busy: Container) -> None:
        done = busy.sh("id -G; ulimit -n; ulimit -Hn; umask; cut -d' ' -f19 /proc/self/stat;"
                       " cat /proc/self/oom_score_adj",
                       user="1234:5", groups=("nogroup", "99"), umask=0o077, nice=7, oom_score_adj=-17,
                       limits=(Limit(name="nofile", soft=64, hard=128),))
        assert done.out.split("\n")[:6] == ["5 99 65534", "64", "128", "0077", "7", "-17"]

    @pytest.mark.parametrize(
        ("asked", "step", "what"),
        [
            ({"groups": ("ghosts",)}, "user", "group ghosts"),
            ({"limits": (Limit(name="files", soft=1, hard=1),)}, "exec", "limit files"),
            ({"limits": (Limit(name="nofile", soft=1, hard=1 << 40),)}, "privileges", "limit 7"),
            ({"capabilities": ("FLY",)}, "exec", "capability FLY"),
            ({"oom_score_adj": 5000}, "privileges", ""),
        ],
    )
    def test_what_cannot_be(self, busy: Container, asked: dict[str, object], step: str, what: str) -> None:
        with pytest.raises(GuestError) as raised:
            busy.exec("true", **asked)
        assert (raised.value.fault.step, raised.value.fault.object) == (step, what)


class TestExecs:
    def test_detached(self, busy: Container) -> None:
        process = busy.process("sh", "-c", "ls -l /proc/self/fd > /tmp/fds; echo nobody hears; read x; exit 9")
        session, started = busy.machine.exec(process, detached=True)
        assert started.pid > 1
        assert session.wait(60) == 9
        assert busy.sh("grep -c /dev/null /tmp/fds; rm /tmp/fds").out == "2\n"  # of three: ls has its own 1

    def test_a_detached_one_has_no_terminal(self, busy: Container) -> None:
        with pytest.raises(GuestError, match="no terminal"):
            busy.machine.exec(busy.process("true", terminal=Terminal()), detached=True)

    def test_signals_by_name_to_the_process_or_its_group(self, busy: Container) -> None:
        script = "trap 'echo got it' USR1; sleep 4321 & echo up; wait; wait; echo over"
        left = "grep -lx sleep /proc/[0-9]*/comm | wc -l"  # the primary process has one too
        before = busy.sh(left).out
        out = Collector(1 << 20)
        session, _ = busy.machine.exec(busy.process("sh", "-c", script), Stdio(stdout=out))
        until(lambda: b"up" in bytes(out.content))
        session.signal("USR1").result(60)
        until(lambda: b"got it" in bytes(out.content))
        assert busy.sh(left).out != before
        session.signal("SIGKILL", group=True).result(60)
        assert session.wait(60) == 137
        busy.until(left, before.strip())

    def test_what_an_exec_leaves_behind_does_not_hold_it_up(self, busy: Container) -> None:
        """Neither with a pipe nor with the terminal in its hands; what it wrote by then is not lost."""
        for terminal, count in ((None, 300_000), (Terminal(), 3_000)):  # the kernel drops more at a terminal's hang-up
            script = f"(trap '' HUP; exec sleep 5000) & head -c {count} /dev/zero | tr '\\0' x; echo ' '$!"
            wrote, left_behind = busy.sh(script, terminal=terminal).out.split()
            assert wrote == "x" * count
            assert busy.sh(f"kill {left_behind}").code == 0


class TestHealth:
    """One VM: `busy` has no check of its own, so these have one each, as short as can be."""

    def test_its_life(self, image: str) -> None:
        words = ("--health-cmd", "echo looked; echo also >&2; test -e /tmp/well", "--health-interval", "200ms",
                 "--health-retries", "2", "--network", "none")
        with container(*words, image, "sleep", "100000") as sick:
            primary = sick.primary
            assert primary is not None
            until(lambda: primary.health is not None and primary.health.status == "unhealthy")
            assert primary.health is not None
            assert primary.health.failures >= 2
            assert (primary.health.log[-1].code, primary.health.log[-1].output) == (1, b"looked\nalso\n")
            sick.sh("touch /tmp/well; date -s 2001-01-01")  # the clock of the day has no say in when it is looked
            until(lambda: primary.health is not None and primary.health.status == "healthy")
            until(lambda: primary.health is not None and len(primary.health.log) == 5
                  and all(probe.code == 0 for probe in primary.health.log))
            assert primary.health.failures == 0
            handles = len(sick.sh("ls /proc/1/fd").out.split())
            last = primary.health.log[-1]
            until(lambda: primary.health is not None and last not in primary.health.log)  # five checks more
            assert len(primary.health.log) == 5
            assert len(sick.sh("ls /proc/1/fd").out.split()) <= handles + 3  # of a check that runs just now

    def test_checks_that_fail_in_other_ways(self, image: str) -> None:
        check = HealthCheck(args=(b"sh", b"-c", b"sleep 1000"), interval_ms=10, timeout_ms=100, retries=1)
        process_gone = HealthCheck(args=(b"no-such-check",), interval_ms=10, retries=1)
        for wanted, words in ((check, b"exceeded"), (process_gone, b"executable file not found")):
            with container("--network", "none", image, "sleep", "100000", change={"health": wanted}) as sick:
                primary = sick.primary
                assert primary is not None
                until(lambda p=primary: p.health is not None and p.health.status == "unhealthy")
                assert primary.health is not None
                assert primary.health.log[-1].code == -1
                assert words in primary.health.log[-1].output
                assert sick.machine.ping().monotonic_ns > 0


class TestRestarts:
    def test_after_failures_as_often_as_allowed(self, image: str) -> None:
        script = "echo run >> /tmp/runs; wc -l < /tmp/runs; sleep 1000 & exit 7"
        words = ("--restart", "on-failure:3", "-v", "/keeps", "--network", "none")
        with container(*words, image, "sh", "-c", script) as failing:
            done = failing.wait()
            assert (done.code, done.out.split()) == (7, ["1", "2", "3", "4"])
            assert failing.primary is not None
            assert failing.primary.restarting is not None
            told = failing.primary.restarting
            assert (told.count, told.state, told.after_ms) == (3, Exited(code=7), 400)

    def test_not_after_success(self, image: str) -> None:
        script = "test -e /tmp/again && { cat; exit 0; }; touch /tmp/again; kill -9 $$"
        with container("--restart", "on-failure", "--network", "none", image, "sh", "-c", script) as once:
            assert once.wait().code == 0

    def test_always_until_somebody_wants_it_to_end(self, image: str) -> None:
        """With a terminal, whose console must not pile up, and input that goes to whoever runs."""
        with container("--restart", "always", "-t", "--network", "none", image, "sh", "-c",
                       "echo up; grep -c console /proc/mounts; exec sleep 0.3", start=False) as made:
            made.spec = made.spec.but(restart=Restart(always=True))
            primary, _ = made.machine.start(made.spec, Stdio(stdout=made.out))
            until(lambda: bytes(made.out.content).count(b"up\r\n1\r\n") >= 3)
            primary.signal("TERM")  # also if it waits to be started: then the last end is the end
            assert primary.wait(60) in (0, 128 + 15)
            with pytest.raises(GuestError, match="not running"):
                made.exec("true")


class TestOwnPids:
    """busybox's init refuses to be anything but PID 1."""

    def test_a_program_that_insists(self, image: str) -> None:
        script = ("mkdir -p /etc; printf '::sysinit:/bin/echo init is up\n::respawn:/bin/sleep 1000\n"
                  "::shutdown:/bin/echo init goes down\n' > /etc/inittab; exec busybox init")
        with container("--network", "none", image, "sh", "-c", script) as refused:
            assert refused.wait().code != 0
        with container("--pid", "private", "--network", "none", image, "sh", "-c", script) as own:
            own.until_says("init is up")
            assert own.sh("cat /proc/1/comm").out == "busybox\n"
            assert int(own.sh("readlink /proc/self").out) < 100
            assert own.sh("awk '$2 == \"/proc\"' /proc/mounts | tail -1 | cut -d' ' -f3").out == "proc\n"
            count = "set -- /proc/[0-9]*; echo $#"
            before = own.sh(count).out
            own.sh("(sleep 0.2 &); (sleep 0.2 &)")
            own.until(count, before.strip())  # reaped by init, as it should be
            assert own.sh("echo lost > /dev/shm/x; cat /dev/shm/x; id -u", user="nobody").out == "lost\n65534\n"
            own.machine.stop(20, "the test is over")
            done = own.wait()
            assert own.machine.join(60)
            assert "down" in done.out or done.code == 137

    def test_signals_of_the_outside_reach_it(self, image: str) -> None:
        script = "trap 'echo asked; exit 5' TERM; echo $$; sleep 1000 & wait"
        with container("--pid", "private", "--network", "none", image, "sh", "-c", script) as first:
            first.until_says("1\n")
            assert first.primary is not None
            first.primary.signal("TERM")
            done = first.wait()
            assert (done.code, done.out) == (5, "1\nasked\n")

    def test_a_death_takes_everything_along_and_restarts_anew(self, image: str) -> None:
        script = "echo $$; (sleep 1000 &); sleep 0.2; set -- /proc/[0-9]*; echo $#; exit 3"
        with container("--pid", "private", "--restart", "on-failure:1", "--network", "none", image,
                       "sh", "-c", script) as twice:
            done = twice.wait()
            assert done.code == 3
            lines = done.out.split()
            assert lines[:2] == lines[2:]
            assert lines[0] == "1"


def until(condition: object, seconds: float = 60) -> None:
    """Waits for it to be true."""
    deadline = time.monotonic() + seconds
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline, "it has not come true"
        time.sleep(0.05)
