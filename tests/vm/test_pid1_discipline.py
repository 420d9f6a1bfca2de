"""What a hostile or unlucky container does to PID 1: nothing.  After each of these it answers, and starts processes.

One VM takes it all.  VCH_TEST_ORPHANS, VCH_TEST_ORPHANS_IN_A_ROW and VCH_TEST_EXECS ask for more than the continuous
tests have time for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.harness import Container, container, text
from tether.spec import Terminal
from vch.errors import GuestError
from vch.machine.files import put
from vch.machine.session import Session, Stdio
from vch.machine.sinks import Collector
from vch.options.process_values import DEFAULT_CAPABILITIES

pytestmark = pytest.mark.vm

ORPHANS = int(os.environ.get("VCH_TEST_ORPHANS", "1000"))
ORPHANS_AT_ONCE = 500
ORPHANS_IN_A_ROW = int(os.environ.get("VCH_TEST_ORPHANS_IN_A_ROW", "2000"))
COMPILE_S = 120.0
GROWTH_KIB = 256  # of the resident memory, which the allocator does not give back page by page
EXECS, ROUNDS = int(os.environ.get("VCH_TEST_EXECS", "300")), 5
LEAST_LEAK_BYTES = 512  # for each exec, less than the smallest of what belongs to one
WAITING = ("trap 'rm -rf /etc; cp -a /calm/etc /etc; echo repaired' USR1;"
           " sleep 100000 & waiting=$!; while :; do wait $waiting; done")
MOST_KIB = 16 * 1024


@pytest.fixture(scope="module")
def victim(home: Path, demo_layout: Path) -> Iterator[Container]:
    """A container with a small disk, that only waits; asked by a signal it repairs its /etc."""
    with container("--network", "none", "--tmpfs", "/calm", f"oci:{demo_layout}:demo", "sh", "-c", WAITING) as made:
        yield made


@pytest.fixture(autouse=True)
def unharmed(victim: Container) -> Iterator[None]:
    """PID 1 answers, has no more descriptors than before, no zombies, and memory as it should."""
    before = descriptors(victim)
    yield
    assert victim.machine.ping().monotonic_ns > 0
    assert victim.sh("echo alive").out == "alive\n"
    victim.until("grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l", "0", seconds=120)
    deadline = time.monotonic() + 120
    while descriptors(victim) > before:  # of what is just being cleared away
        assert time.monotonic() < deadline, victim.sh("ls -l /proc/1/fd").out
    assert victim.resident_kib() < MOST_KIB


def descriptors(made: Container) -> int:
    return int(made.sh("ls /proc/1/fd | wc -l").out)


def test_orphans_by_the_thousand(victim: Container) -> None:
    """They die all at once, and PID 1, which has to bury them, serves the link meanwhile."""
    batch = f"i=0; while [ $i -lt {ORPHANS_AT_ONCE} ]; do sleep 1 & i=$((i+1)); done"

    def some() -> None:
        session, _ = victim.machine.exec(victim.process("sh", "-c", batch), Stdio())
        assert victim.machine.ping().monotonic_ns > 0
        assert session.wait(240) == 0
        victim.until("grep -lx sleep /proc/[0-9]*/comm 2>/dev/null | wc -l", "1", seconds=240)  # the primary process

    assert victim.growth_kib(some, max(1, ORPHANS // ORPHANS_AT_ONCE)) < ORPHANS_AT_ONCE * LEAST_LEAK_BYTES // 1024


def test_orphans_in_a_row(victim: Container, tmp_path: Path) -> None:
    """A program that makes them as fast as it can: PID 1 keeps up, answers meanwhile, and does not grow."""
    compiler = shutil.which("musl-gcc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (apt-get install musl-tools)")
    program = tmp_path / "orphans"
    subprocess.run([compiler, "-static", "-O2", "-o", program, Path(__file__).parent / "orphans.c"], check=True,
                   capture_output=True, timeout=COMPILE_S)
    put(victim.machine, program, "/calm")
    assert victim.exec("/bin/cp", "/calm/orphans", "/orphans").code == 0  # a tmpfs executes nothing
    victim.exec("/orphans", "200")
    before, out = victim.resident_kib(), Collector(64)
    session, _ = victim.machine.exec(victim.process("/orphans", str(ORPHANS_IN_A_ROW)), Stdio(stdout=out))
    pings, highest = 0, before
    while not session.ended.done:
        assert victim.machine.ping().monotonic_ns > 0
        highest = max(highest, victim.resident_kib())
        pings += 1
    assert (session.wait(60), text(out)) == (0, f"{ORPHANS_IN_A_ROW}\n")
    assert pings > 0
    print(f"{ORPHANS_IN_A_ROW} orphans, {pings} answers meanwhile; resident {before} KiB before, {highest} at most")
    assert highest - before < GROWTH_KIB
    assert victim.sh("rm /orphans").code == 0


def test_many_execs_leave_no_growth(victim: Container) -> None:
    def some() -> None:
        for _ in range(EXECS // ROUNDS):
            assert victim.exec("true").code == 0

    assert victim.growth_kib(some, ROUNDS) <= EXECS // ROUNDS * LEAST_LEAK_BYTES // 1024


def test_no_process_can_be_made(victim: Container) -> None:
    """fork fails in PID 1 itself: the request is answered with a Fault that says so."""
    victim.sh("cat /proc/sys/kernel/threads-max > /calm/most; echo 64 > /proc/sys/kernel/threads-max")
    sleepers: list[Session] = []

    def one_more() -> None:
        sleepers.append(victim.machine.exec(victim.process("sleep", "1000"), Stdio())[0])

    fault = None
    while fault is None and len(sleepers) < 64:
        try:
            one_more()
        except GuestError as error:
            fault = error.fault
    assert fault is not None
    assert (fault.step, fault.errno) == ("exec", "EAGAIN")
    assert victim.machine.ping().monotonic_ns > 0
    for sleeper in sleepers:
        sleeper.signal(9)
    assert [sleeper.wait(60) for sleeper in sleepers] == [137] * len(sleepers)
    assert victim.sh("cat /calm/most > /proc/sys/kernel/threads-max; cat /proc/sys/kernel/threads-max").out != "64\n"


def test_out_of_memory(victim: Container) -> None:
    """The kernel takes the hungry process: neither PID 1, nor the one that only waits."""
    session, _ = victim.machine.exec(victim.process("tail", "/dev/zero"), Stdio())
    assert session.wait(120) == 137
    assert session.ended.result(1).oom_killed
    assert victim.sh("cat /proc/1/oom_score").out == "0\n"
    assert victim.primary is not None
    assert not victim.primary.ended.done


def test_memory_of_a_tmpfs_that_no_killer_frees(victim: Container) -> None:
    """/dev/shm and other file systems in memory are bounded, so that filling them leaves room for PID 1."""
    done = victim.sh("for f in /dev/shm /dev; do dd if=/dev/zero of=$f/fill bs=1M count=999; rm $f/fill; done")
    assert done.err.count("No space left") == 2


def test_a_full_disk(victim: Container) -> None:
    assert "No space left" in victim.sh("dd if=/dev/zero of=/fill bs=1M").err
    assert victim.sh("echo more > /more").code != 0
    assert victim.exec("cat", "/etc/hostname", cwd=b"/tmp").code == 0
    assert victim.sh("rm /fill /more; echo again > /more; cat /more; rm /more").out == "again\n"


TRAPS = (
    "ln -s /proc/1/root/etc /etc", "ln -s /etc /etc", "mkfifo /etc", "mkdir /etc; mkfifo /etc/passwd",
    "mkdir /etc; ln -s /dev/zero /etc/passwd", "mkdir /etc; truncate -s 100G /etc/passwd",
    "mkdir /etc; ln -s /dev/zero /etc/group",
)  # fmt: skip


def test_another_etc(victim: Container) -> None:
    """Whatever is in its place: a user that is to be looked up there is a Fault in good time."""
    assert victim.primary is not None
    victim.sh("cp -a /etc /calm/etc; umount /etc/hosts /etc/hostname /etc/resolv.conf")
    for count, trap in enumerate(TRAPS, 1):
        assert victim.exec("/bin/sh", "-c", f"rm -rf /etc; {trap}").code == 0, trap
        with pytest.raises(GuestError) as raised:
            victim.exec("id", user="somebody")
        assert raised.value.fault.step == "user", trap
        assert victim.machine.ping().monotonic_ns > 0
        victim.primary.signal("USR1").result(60)
        victim.until_says("repaired\n" * count)
    assert victim.exec("id", "-un", user="nobody").out == "nobody\n"


def test_the_tty_is_held(victim: Container) -> None:
    """A hundred processes that keep a terminal open do not keep its session from ending."""
    script = "trap '' HUP; i=0; while [ $i -lt 100 ]; do (trap '' HUP; exec sleep 600) & i=$((i+1)); done; echo over"
    assert victim.sh(script, terminal=Terminal()).out == "over\r\n"
    victim.sh("for p in /proc/[0-9]*; do grep -qs 600 $p/cmdline && kill -9 ${p#/proc/}; done")


def test_what_dockers_capabilities_keep_from_pid_1(victim: Container) -> None:
    """Root in a container cannot look into its memory, nor see its files; and no signal stops it."""
    script = ("dd if=/proc/1/mem of=/dev/null bs=1 count=1; ls /proc/1/root/; cat /proc/1/environ; cat /proc/1/fd/0;"
              " kill -STOP 1; kill -KILL 1; kill -SEGV 1; echo 1000 > /proc/1/oom_score_adj")
    done = victim.sh(script, capabilities=DEFAULT_CAPABILITIES)
    assert done.err.count("Permission denied") == 4, done.err
    assert victim.sh("cut -d' ' -f3,19 /proc/1/stat").out in ("S 0\n", "R 0\n")
