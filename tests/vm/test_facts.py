"""What the agent tells of a running container; psutil, inside, is the judge of the numbers."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import vch
from tests.debian_image import CannotBuild, debian_python_layout
from tether.link.late_messages import MemoryShort, OutOfMemory, ProcessTable

pytestmark = pytest.mark.vm

JUDGE = """
import json, psutil
memory, cpu = psutil.virtual_memory(), psutil.cpu_times()
print(json.dumps({
    "total": memory.total, "available": memory.available, "cpu": cpu._asdict(), "count": psutil.cpu_count(),
    "disks": {k: v._asdict() for k, v in psutil.disk_io_counters(perdisk=True).items()},
    "networks": {k: v._asdict() for k, v in psutil.net_io_counters(pernic=True).items()},
    "processes": {p.pid: [p.ppid(), p.username(), p.nice(), p.num_threads(), " ".join(p.cmdline())]
                  for p in psutil.process_iter()},
}))
"""

# Eats memory slowly, so that whoever is to be warned is, and gives all of it back when it is killed.
EAT = 'BEGIN { s = "x"; while (length(s) < 262144) s = s s; while (1) { a[i++] = s i; system("usleep 50000") } }'
SHORT_S = 300.0


@pytest.fixture(scope="module")
def box(home: Path) -> Iterator[vch.Machine]:
    try:
        layout = debian_python_layout()
    except CannotBuild as reason:
        pytest.skip(str(reason))
    with vch.Machine(f"oci:{layout}:latest") as machine:
        machine.put(Path(psutil.__file__).parent, "/usr/lib/python3")
        machine.exec("mv", "/usr/lib/python3/psutil", "/usr/lib/python3/dist-packages/", check=True)
        yield machine


def judged(box: vch.Machine) -> dict[str, Any]:
    """What psutil says."""
    found = json.loads(box.exec("python3", "-c", JUDGE, check=True).stdout)
    assert isinstance(found, dict)
    return found


def seen(box: vch.Machine, command: str) -> ProcessTable:
    """The processes, once this one is among them."""
    deadline = time.monotonic() + 60
    while command not in [row[-1] for row in box.top().rows]:
        assert time.monotonic() < deadline, f"{command} does not run"
    return box.top()


class TestStats:
    def test_psutil_says_the_same(self, box: vch.Machine) -> None:
        box.exec("sh", "-c", "head -c 5000000 /dev/urandom > /file; sync", check=True)
        before, psutils, after = box.stats(), judged(box), box.stats()
        assert before.time_ns < after.time_ns
        assert before.memory.limit == psutils["total"]
        assert abs(before.memory.available - psutils["available"]) < 64 << 20
        cpu = psutils["cpu"]
        assert before.cpu.online == psutils["count"]
        assert before.cpu.user_ns <= (cpu["user"] + cpu["nice"]) * 1e9 + 1e7
        assert (cpu["user"] + cpu["nice"]) * 1e9 <= after.cpu.user_ns + 1e7
        assert 0 < after.cpu.total_ns - before.cpu.total_ns <= after.cpu.system_ns - before.cpu.system_ns
        for early, late in zip(before.blocks, after.blocks, strict=True):
            of_psutil = psutils["disks"][early.name]
            assert early.written_bytes <= of_psutil["write_bytes"] <= late.written_bytes
            assert early.read_bytes <= of_psutil["read_bytes"] <= late.read_bytes
        assert sum(one.written_bytes for one in before.blocks) >= 5_000_000
        (nic,) = after.networks
        assert nic.name == "eth0"
        assert before.networks[0].rx_bytes <= psutils["networks"]["eth0"]["bytes_recv"] <= nic.rx_bytes

    def test_counts(self, box: vch.Machine) -> None:
        few = box.stats()
        waiting = [box.popen("sleep", "1000") for _ in range(7)]
        many = box.stats()
        for session in waiting:
            session.signal("KILL")
            session.wait(60)
        assert many.pids - few.pids == 7
        assert few.pids < many.pids_limit
        assert {"anon", "file", "inactive_file", "pgfault", "pgmajfault"} <= many.memory.detail.keys()


class TestTop:
    def test_dockers_columns(self, box: vch.Machine) -> None:
        session = box.popen("sh", "-c", "sleep 1000; true", user="nobody")
        told = seen(box, "sleep 1000")
        assert told.titles == ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")
        (sleep,) = [row for row in told.rows if row[-1] == "sleep 1000"]
        (shell,) = [row for row in told.rows if row[-1].startswith("sh -c")]
        assert sleep[0] == "nobody"
        assert sleep[2] == shell[1]
        assert sleep[5] == "?"
        session.signal("KILL")
        box.exec("sh", "-c", f"kill {sleep[1]}", check=True)

    def test_psutil_says_the_same(self, box: vch.Machine) -> None:
        session = box.popen("nice", "-n", "5", "sleep", "1000")
        of_psutil = {pid: facts for pid, facts in judged(box)["processes"].items() if "JUDGE" not in facts[-1]}
        told = {row[0]: [int(row[1]), row[2], int(row[3]), int(row[4]), row[5]]
                for row in box.top("pid", "ppid", "user", "ni", "nlwp", "args").rows if not row[5].startswith("[")}
        session.signal("KILL")
        assert told
        assert {pid: of_psutil[pid] for pid in told} == told

    def test_a_column_that_is_not_known(self, box: vch.Machine) -> None:
        with pytest.raises(vch.GuestError, match="nonsense"):
            box.top("pid", "nonsense")


class TestLog:
    def test_the_agent_tells_what_it_does(self, box: vch.Machine) -> None:
        begun = box.logs()
        assert any(line.startswith("info ") and "step: stack root" in line for line in begun)
        with pytest.raises(vch.GuestError):
            box.stat("/no/such")
        box.exec("true")
        lines = box.logs("debug")
        assert any(line.startswith("warning ") and "/no/such" in line for line in lines)
        assert any(line.startswith("info ") and "event: Ended" in line for line in lines)
        box.stat("/")
        assert any(line.startswith("debug ") and line.endswith(": Stat") for line in box.logs("error"))
        with pytest.raises(vch.GuestError, match="loud"):
            box.logs("loud")


class TestMemory:
    def test_the_oom_killers_victims_are_told(self, box: vch.Machine) -> None:
        events: queue.Queue[object] = queue.Queue()
        box.watch_memory(events.put)
        box.exec("sh", "-c", "echo '<3>Out of memory: Killed process 1 (lie) total-vm:1kB' > /dev/kmsg || true")
        box.exec("mknod", "/tmp/kmsg", "c", "1", "11", check=True)
        box.exec("sh", "-c", "echo '<3>Out of memory: Killed process 1 (lie) total-vm:1kB' > /tmp/kmsg", check=True)
        assert box.exec("tail", "/dev/zero").code == 128 + 9
        victim = events.get(timeout=60)
        while not isinstance(victim, OutOfMemory):
            assert isinstance(victim, MemoryShort)
            assert victim.available < victim.limit / 5
            victim = events.get(timeout=60)
        assert (victim.name, victim.rss > 50 << 20) == ("tail", True)

    @pytest.mark.parametrize("kernel", ["debian-cloud", "pico"])
    def test_that_it_is_short_is_told_before_anybody_is_killed(
        self, home: Path, demo_layout: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
    ) -> None:
        """By the kernel's pressure stall information, or without: Debian's kernel has it, ours has not."""
        if not (home / "kernels" / kernel).exists():
            pytest.skip(f"the kernel {kernel} is not in {home}")
        monkeypatch.setenv("VCH_KERNEL", kernel)
        with vch.Machine(f"oci:{demo_layout}:demo", memory="160m", network="none") as short:
            if kernel == "debian-cloud" and short.exec("test", "-e", "/proc/pressure/memory").code:
                pytest.skip("this kernel has no pressure stall information")
            events: queue.Queue[object] = queue.Queue()
            short.watch_memory(events.put)
            eater = short.popen("awk", EAT)
            told = events.get(timeout=SHORT_S)
            eater.signal("KILL")
            assert eater.wait(SHORT_S) == 137
            assert isinstance(told, MemoryShort), told
            assert told.available < told.limit * 0.08
            assert short.exec("grep", "oom_kill ", "/proc/vmstat").stdout.split()[1] == "0"
