"""What the kernel says of the whole container VM, in the shape of Docker's statistics; asked by a worker.

The container is the VM: what is counted for it is what the kernel counts for itself, PID 1 and its own threads
included.  Sources: proc(5), the kernel's filesystems/proc.rst and admin-guide/iostats.rst.  psutil would say the same
of most of it, for 42 million instructions of imports each time.
"""

import os
import time

from tether.link.late_messages import BlockUse, CpuUse, InterfaceUse, MemoryUse, Statistics
from tether.requests.processes import pids, read_text, threads_of

_SECOND_NS = 1_000_000_000
_SECTOR = 512  # of /proc/diskstats, whatever the disk's own are
_KIB = 1024
_DISK_FIELDS = 14
_LOOPBACK = "lo"
# Fields of /proc/meminfo under the names that cgroup v2 gives them in memory.stat, which Docker passes on.
_MEMORY_NAMES = {
    "AnonPages": "anon", "Cached": "file", "KernelStack": "kernel_stack", "PageTables": "pagetables", "Shmem": "shmem",
    "Mapped": "file_mapped", "Dirty": "file_dirty", "Writeback": "file_writeback", "Slab": "slab",
    "SReclaimable": "slab_reclaimable", "SUnreclaim": "slab_unreclaimable", "Active(anon)": "active_anon",
    "Inactive(anon)": "inactive_anon", "Active(file)": "active_file", "Inactive(file)": "inactive_file",
    "Unevictable": "unevictable",
}  # fmt: skip
_EVENT_NAMES = ("pgfault", "pgmajfault", "oom_kill")


def statistics() -> Statistics:
    """All of it, now."""
    return Statistics(
        time_ns=time.time_ns(),
        cpu=cpu_use(read_text("/proc/stat"), os.sysconf("SC_CLK_TCK")),
        memory=memory_use(read_text("/proc/meminfo"), read_text("/proc/vmstat")),
        blocks=block_use(read_text("/proc/diskstats"), frozenset(os.listdir("/sys/block"))),
        networks=interface_use(read_text("/proc/net/dev")),
        pids=sum(threads_of(pid) for pid in pids()),
        pids_limit=int(read_text("/proc/sys/kernel/threads-max")),
    )


def cpu_use(text: str, ticks: int) -> CpuUse:
    """The first lines of /proc/stat; `ticks` a second."""
    lines = text.splitlines()
    user, nice, system, idle, iowait, irq, softirq, steal = (int(word) for word in lines[0].split()[1:9])
    unit = _SECOND_NS // ticks
    busy = user + nice + system + irq + softirq
    return CpuUse(
        total_ns=busy * unit,
        user_ns=(user + nice) * unit,
        kernel_ns=(system + irq + softirq) * unit,
        system_ns=(busy + idle + iowait + steal) * unit,
        online=sum(line.startswith("cpu") for line in lines) - 1,
    )


def memory_use(meminfo: str, vmstat: str) -> MemoryUse:
    """/proc/meminfo and /proc/vmstat."""
    said = {name: int(rest.split()[0]) * _KIB
            for name, _, rest in (line.partition(":") for line in meminfo.splitlines())}
    events = {name: int(value) for name, _, value in (line.partition(" ") for line in vmstat.splitlines())
              if name in _EVENT_NAMES}
    detail = {ours: said[name] for name, ours in _MEMORY_NAMES.items() if name in said}
    return MemoryUse(usage=said["MemTotal"] - said["MemFree"], limit=said["MemTotal"],
                     available=said["MemAvailable"], detail={**detail, **events})


def block_use(text: str, disks: frozenset[str]) -> tuple[BlockUse, ...]:
    """/proc/diskstats, of whole disks that were used."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < _DISK_FIELDS or fields[2] not in disks:
            continue
        reads, read_sectors, writes, written_sectors = (int(fields[at]) for at in (3, 5, 7, 9))
        if reads or writes:
            found.append(BlockUse(name=fields[2], major=int(fields[0]), minor=int(fields[1]), reads=reads,
                                  read_bytes=read_sectors * _SECTOR, writes=writes,
                                  written_bytes=written_sectors * _SECTOR))
    return tuple(found)


def interface_use(text: str) -> tuple[InterfaceUse, ...]:
    """/proc/net/dev, without the loopback interface."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        numbers = [int(word) for word in rest.split()]
        if name.strip() != _LOOPBACK:
            found.append(InterfaceUse(
                name=name.strip(), rx_bytes=numbers[0], rx_packets=numbers[1], rx_errors=numbers[2],
                rx_dropped=numbers[3], tx_bytes=numbers[8], tx_packets=numbers[9], tx_errors=numbers[10],
                tx_dropped=numbers[11],
            ))  # fmt: skip
    return tuple(found)
