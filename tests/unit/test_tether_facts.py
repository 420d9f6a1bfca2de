"""What the agent reads out of /proc."""

from __future__ import annotations

from typing import cast

import pytest

from tether.kernel.mounts import Mounted, parse_mounts
from tether.link.late_messages import BlockUse, CpuUse, InterfaceUse, OutOfMemory
from tether.link.stream import Stream
from tether.requests.facts import block_use, cpu_use, interface_use, memory_use
from tether.requests.log import DEBUG, INFO, WARNING, Log
from tether.requests.memorywatch import parse_available, parse_kill

STAT = """cpu  100 20 30 400 50 6 7 8 0 0
cpu0 50 10 15 200 25 3 3 4 0 0
cpu1 50 10 15 200 25 3 4 4 0 0
intr 1 2 3
ctxt 4
"""
MEMINFO = "MemTotal:  1000 kB\nMemFree:  400 kB\nMemAvailable:  700 kB\nCached:  200 kB\nActive(anon):  5 kB\n"
DISKS = """   8       0 sda 10 1 200 3 20 2 400 4 0 5 6
   8       1 sda1 9 1 100 3 20 2 400 4 0 5 6
 253       0 vda 0 0 0 0 0 0 0 0 0 0 0
"""
NET = """Inter-|   Receive                    |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0
  eth0:10 1 2 3 0 0 0 0 20 4 5 6 0 0 0 0
"""


def test_cpu_use() -> None:
    assert cpu_use(STAT, 100) == CpuUse(total_ns=1_630_000_000, user_ns=1_200_000_000, kernel_ns=430_000_000,
                                        system_ns=6_210_000_000, online=2)


def test_memory_use() -> None:
    found = memory_use(MEMINFO, "nr_free 1\npgfault 77\noom_kill 2\n")
    assert (found.usage, found.limit, found.available) == (600 * 1024, 1000 * 1024, 700 * 1024)
    assert found.detail == {"file": 200 * 1024, "active_anon": 5 * 1024, "pgfault": 77, "oom_kill": 2}


def test_whole_disks_that_were_used() -> None:
    assert block_use(DISKS, frozenset(("sda", "vda"))) == (
        BlockUse(name="sda", major=8, minor=0, reads=10, read_bytes=200 * 512, writes=20, written_bytes=400 * 512),)


def test_interfaces_without_loopback() -> None:
    assert interface_use(NET) == (InterfaceUse(name="eth0", rx_bytes=10, rx_packets=1, rx_errors=2, rx_dropped=3,
                                               tx_bytes=20, tx_packets=4, tx_errors=5, tx_dropped=6),)


def test_mounts() -> None:
    text = b"22 1 0:20 / /r/a\\040b rw,nosuid shared:5 - overlay overlay rw,lowerdir=/i:/l/0,upperdir=/w/upper\n"
    assert list(parse_mounts(text)) == [
        Mounted(device=20, path="/r/a b", kind="overlay", source="overlay",
                options="rw,lowerdir=/i:/l/0,upperdir=/w/upper")]


KILL = (b"3,612,8421,-;Out of memory: Killed process 84 (a (b) c) total-vm:9kB, anon-rss:%bkB, file-rss:4kB, "
        b"shmem-rss:0kB, UID:0 pgtables:1kB oom_score_adj:0\n") % b"456"


def test_a_kill_is_read_out_of_the_kernels_log() -> None:
    assert parse_kill(KILL) == OutOfMemory(pid=84, name="a (b) c", rss=456 * 1024)


@pytest.mark.parametrize("record", [b"", b"x", b"6,1,2,-;eth0: up\n", KILL.replace(b"3,", b"11,", 1),
                                    KILL.replace(b"3,", b"-3,", 1)])
def test_what_is_no_kill_or_not_the_kernels_word(record: bytes) -> None:
    assert parse_kill(record) is None


def test_available_memory() -> None:
    assert parse_available(MEMINFO.encode()) == (1000 * 1024, 700 * 1024)


class Narrow:
    """A stream that takes what there is room for."""

    def __init__(self, room: int) -> None:
        self.room, self.lines = room, b""

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        self.lines += data
        return len(data)


class TestLog:
    def test_levels(self) -> None:
        stream = Narrow(10_000)
        log = Log(cast("Stream", stream), INFO)
        log.write(DEBUG, "not this")
        log.write(INFO, "this\nin one line", 1.5)
        assert stream.lines == b"info 1.500 this in one line\n"
        assert log.sent == len(stream.lines)

    def test_what_nobody_reads_is_counted_and_not_kept(self) -> None:
        stream = Narrow(30)
        log = Log(cast("Stream", stream), DEBUG)
        for _ in range(5):
            log.write(WARNING, "x" * 100)
        assert stream.lines == b""
        stream.room = 1000
        log.write(WARNING, "room again", 2)
        first, second = stream.lines.decode().splitlines()
        assert first.endswith("5 lines were lost: nobody read them")
        assert second == "warning 2.000 room again"
        log.write(WARNING, "and again", 3)
        assert len(stream.lines.splitlines()) == 3
