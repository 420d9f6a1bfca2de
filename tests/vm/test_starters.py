"""Processes that a thread of PID 1 starts, beside those of a fork: nobody can tell which it was, and nobody waits."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.vm.harness import Container, Output, container, text
from tether.link.messages import Fault
from tether.spec import Limit
from vch.errors import GuestError
from vch.machine.session import Stdio
from vch.machine.sinks import Collector
from vch.options.process_values import DEFAULT_CAPABILITIES

pytestmark = pytest.mark.vm

BUILD_SECONDS = 120
SAME_LIMIT = (Limit(name="nofile", soft=1048576, hard=1048576),)  # what all have; but only a fork can set one
FORKED = "/proc/1/task/1/children"
ABORTED = ("ENOTCONN", "ECONNABORTED", "EIO")  # what who waits for a server gets when that ends
# The thread stands still until its youngest child has begun.
KILL_WHAT_BEGINS = """
thread=$(grep -l '^State:.D' /proc/1/task/*/status); set -- $(cat ${thread%status}children)
while [ $# -gt 1 ]; do shift; done; kill -9 $1
"""
# What differs between any two processes.
_OWN = ("Name", "Pid", "Tgid", "NSpid", "NStgid", "NSsid", "NSpgid", "Vm", "Rss", "HugetlbPages", "voluntary_ctxt",
        "nonvoluntary_ctxt", "Cpus", "Mems")  # fmt: skip
WHAT_IT_HAS = r"""
ls -ln /proc/self/fd | sed 's/.* -> //; s/[0-9]\{2,\}/N/'; readlink /proc/$$/cwd; readlink /proc/$$/root
cut -d' ' -f4,5,6,7,8,18,19,20,40,41 /proc/$$/stat | sed "s/\b$$\b/SELF/g"
cat /proc/$$/limits /proc/$$/oom_score_adj; tr '\0' '\n' < /proc/$$/environ; tr '\0' ' ' < /proc/$$/cmdline; umask
stat -c '%u:%g' /proc/$$/mem /proc/$$/environ; echo out > /dev/stdout
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs for the guest, in a folder."""
    folder = tmp_path_factory.mktemp("programs")
    for name in ("identity", "stuck_fs"):
        source = Path(__file__).with_name(f"{name}.c")
        subprocess.run(["gcc", "-static", "-O2", "-s", "-o", folder / name, source], check=True, timeout=BUILD_SECONDS)
    return folder


@pytest.fixture(scope="module")
def image(home: Path, demo_layout: Path) -> str:
    """The demo image by its layout."""
    return f"oci:{demo_layout}:demo"


@pytest.fixture(scope="module")
def busy(image: str, programs: Path) -> Iterator[Container]:
    """A container that waits and, asked by a signal, takes away what lies over /etc."""
    script = "trap 'umount -l /etc; echo mended' USR1; sleep 1000000 & while :; do wait; done"
    with container("--network", "none", "--privileged", image, "sh", "-c", script) as made:
        for program in programs.iterdir():
            install(made, program)
        yield made


def install(made: Container, program: Path) -> None:
    """Puts a program into the container."""
    with program.open("rb") as content:
        script = f"cat > /bin/{program.name}; chmod 755 /bin/{program.name}"
        session, _ = made.machine.exec(made.process("sh", "-c", script, stdin=True), Stdio(stdin=content.fileno()))
        assert session.wait(60) == 0


def way(made: Container, **process: object) -> str:
    """Which list of PID 1's children a process is in."""
    return made.sh("grep -lw $$ /proc/1/task/*/children", **process).out.strip()


def wait_for_thread(made: Container) -> None:
    """Until a thread starts processes again: on a busy host one of them may have taken too long."""
    deadline = time.monotonic() + 60
    while way(made) == FORKED:
        assert time.monotonic() < deadline


class TestNobodyCanTell:
    @pytest.mark.parametrize("capabilities", [None, DEFAULT_CAPABILITIES, ("KILL",)])
    @pytest.mark.parametrize("user", ["", "nobody", "1234:5678", "0:7"])
    def test_what_the_kernel_says_of_it(self, busy: Container, user: str, capabilities: tuple[str, ...] | None) -> None:
        asked = {"user": user, "capabilities": capabilities, "groups": ("nogroup", "77"), "env": (b"A=1",)}
        ways = [busy.exec("cat", "/proc/self/status", **asked, limits=limits).out for limits in ((), SAME_LIMIT)]
        by_thread, by_fork = ([line for line in said.splitlines() if not line.startswith(_OWN)] for said in ways)
        assert by_thread == by_fork
        assert {"PPid:\t1", "SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"} <= set(by_thread)

    @pytest.mark.parametrize("user", ["", "nobody"])
    def test_what_it_finds(self, busy: Container, user: str) -> None:
        asked = {"user": user, "cwd": b"/usr/bin"}
        by_thread, by_fork = (busy.sh(WHAT_IT_HAS, **asked, limits=limits) for limits in ((), SAME_LIMIT))
        assert (by_thread.code, by_thread.out, by_thread.err) == (by_fork.code, by_fork.out, by_fork.err)
        assert "/usr/bin\n" in by_thread.out
        assert by_thread.out.endswith("out\n")

    def test_a_program_that_belongs_to_root(self, busy: Container) -> None:
        """Set-user-ID works, and nothing else makes a program one that the kernel protects from its user."""
        for mode, user, expected in (("755", "nobody", "65534 65534 0 1\n"), ("4755", "nobody", "0 65534 1 0\n"),
                                     ("4755", "", "0 0 0 1\n")):
            assert busy.sh(f"chmod {mode} /bin/identity").code == 0
            for limits in ((), SAME_LIMIT):
                assert busy.exec("identity", user=user, limits=limits).out == expected

    def test_it_was_a_thread(self, busy: Container) -> None:
        """Once it is there: the first start of all may take too long on a busy host."""
        wait_for_thread(busy)
        assert way(busy, limits=SAME_LIMIT) == FORKED
        assert way(busy, capabilities=DEFAULT_CAPABILITIES) != FORKED
        assert busy.sh("ls /proc/1/task | wc -l").out in ("2\n", "3\n")

    def test_users_take_turns(self, busy: Container) -> None:
        for count in range(5):
            assert busy.exec("id", "-u", user="nobody").out == "65534\n"
            assert busy.sh("id -u; id -G").out == "0\n0\n"
            assert busy.sh("id -g; id -G", user=f"{count}:{count + 7}").out == f"{count + 7}\n{count + 7}\n"

    def test_a_directory_by_way_of_its_own_proc(self, busy: Container) -> None:
        """/proc/self is the process, whoever starts it: the root of PID 1 is another one."""
        assert busy.sh("ls", cwd=b"/proc/self/root").out == busy.sh("ls /").out


class Stuck:
    """A file system of one program that answers nobody who reads it, while it is mounted in `made`."""

    def __init__(self, made: Container, place: str) -> None:
        if "fuse" not in made.sh("cat /proc/filesystems").out:
            pytest.skip("this kernel has no FUSE (that of `make pico` has)")
        self._said = Collector(1 << 20)
        script = f"mkdir -p {place}; exec stuck_fs {place}"
        self._server, _ = made.machine.exec(made.process("sh", "-c", script), Stdio(stdout=self._said))
        until(lambda: self.says("up"))

    def says(self, what: str) -> bool:
        """Whether it has."""
        return f"{what}\n" in text(self._said)

    def end(self) -> None:
        """Whoever waits for it gets an error."""
        self._server.signal("KILL").result(60)
        assert self._server.wait(60) == 137


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Where execs wait that nobody answers."""
    with ThreadPoolExecutor() as pool:
        yield pool


def fault_of(pending: Future[Output]) -> Fault:
    """Why an exec could not be."""
    error = pending.exception(timeout=60)
    assert isinstance(error, GuestError), error
    return error.fault


class TestNobodyWaits:
    """For a file system that never answers: what is to be executed from there waits alone."""

    def test_while_a_program_is_read(self, busy: Container, background: ThreadPoolExecutor) -> None:
        wait_for_thread(busy)
        stuck = Stuck(busy, "/mnt")
        waiting = background.submit(busy.exec, "/mnt/program")
        until(lambda: stuck.says("read"))
        assert [way(busy) for _ in range(3)] == [FORKED] * 3  # the thread is still in there
        assert busy.machine.ping().monotonic_ns > 0
        assert not waiting.done()
        stuck.end()
        fault = fault_of(waiting)
        assert (fault.step, fault.object) == ("exec", "/mnt/program")
        assert fault.errno in ABORTED
        wait_for_thread(busy)
        assert busy.sh("umount /mnt").code == 0

    def test_a_process_that_has_not_begun_can_be_killed(self, busy: Container, background: ThreadPoolExecutor) -> None:
        wait_for_thread(busy)
        stuck = Stuck(busy, "/mnt")
        waiting = background.submit(busy.exec, "/mnt/program")
        until(lambda: stuck.says("read"))
        assert busy.sh(KILL_WHAT_BEGINS).code == 0
        stuck.end()  # until then no signal reaches who waits for a server that has the request
        assert waiting.result(60).code == 137
        wait_for_thread(busy)
        assert busy.sh("umount /mnt").code == 0

    def test_while_the_databases_are_read(self, busy: Container, background: ThreadPoolExecutor) -> None:
        wait_for_thread(busy)
        stuck = Stuck(busy, "/etc")
        waiting = background.submit(busy.exec, "true")
        until(lambda: stuck.says("read"))
        assert busy.machine.ping().monotonic_ns > 0
        assert not waiting.done()
        stuck.end()
        fault = fault_of(waiting)
        assert fault.step == "user"
        assert fault.errno in ABORTED
        assert busy.primary is not None
        busy.primary.signal("USR1").result(60)
        busy.until_says("mended")
        wait_for_thread(busy)

    def test_the_end_does_not_wait_either(self, image: str, programs: Path, background: ThreadPoolExecutor) -> None:
        with container("--network", "none", "--privileged", image, "sleep", "1000000") as made:
            install(made, programs / "stuck_fs")
            stuck = Stuck(made, "/mnt")
            waiting = background.submit(made.exec, "/mnt/program")
            until(lambda: stuck.says("read"))
            made.machine.stop(0.1, "the test is over")
            assert made.machine.join(60)
            assert waiting.exception(60) is not None or waiting.result().code == 137
