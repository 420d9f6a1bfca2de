"""What the agent reads out of /proc."""

from __future__ import annotations

from tether.facts import block_use, cpu_use, interface_use, memory_use
from tether.link.late_messages import BlockUse, CpuUse, InterfaceUse
from tether.mounts import Mounted, parse_mounts

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
