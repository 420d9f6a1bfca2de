"""What the kernel says of memory."""

import gc
import os

from tether import files

_PAGE_KIB = os.sysconf("SC_PAGESIZE") // 1024


def collect_from_now_on() -> None:
    """Switches on the garbage collector, which /init switched off.  What is there now stays and is not looked at."""
    gc.freeze()
    gc.enable()


def resident_kib() -> int:
    """Memory of tether itself that is in RAM (proc(5), statm)."""
    return int(files.read("/proc/self/statm").split()[1]) * _PAGE_KIB


def oom_kills() -> int:
    """How many processes the OOM killer has killed since boot.

    All processes but PID 1, which it never takes, and the kernel's own threads belong to the container: so a growing
    number is the container's.  0 where the kernel does not count (CONFIG_VM_EVENT_COUNTERS).
    """
    return parse_oom_kills(files.read("/proc/vmstat"))


def parse_oom_kills(vmstat: bytes) -> int:
    """The line "oom_kill N" of /proc/vmstat."""
    for line in vmstat.splitlines():
        name, _, value = line.partition(b" ")
        if name == b"oom_kill":
            return int(value)
    return 0
