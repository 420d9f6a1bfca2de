"""What the kernel says of memory."""

import gc
import os

from tether.kernel import files
from tether.kernel.syscalls import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt

_PAGE_KIB = os.sysconf("SC_PAGESIZE") // 1024


def collect_from_now_on() -> None:
    """Switches on the garbage collector, which /init switched off.  What is there now stays and is not looked at."""
    gc.freeze()
    gc.enable()


def keep_buffers() -> None:
    """Has the C library keep the memory of a few large chunks instead of giving it back and fetching it again.

    Chunks of half a megabyte come and go while a process writes much.  By default each is a mapping of its own, whose
    pages the kernel has to find and clear one by one: a quarter of PID 1's time.  (mallopt(3))
    """
    mallopt(M_MMAP_THRESHOLD, 1 << 20)
    mallopt(M_TRIM_THRESHOLD, 2 << 20)


def resident_kib() -> int:
    """Memory of tether itself that is in RAM (proc(5), statm)."""
    return int(files.read("/proc/self/statm").split()[1]) * _PAGE_KIB


class OomCounter:
    """How many processes the OOM killer has killed since boot.

    All processes but PID 1, which it never takes, and the kernel's own threads belong to the container: so a growing
    number is the container's.
    """

    def __init__(self) -> None:
        self._vmstat = os.open("/proc/vmstat", os.O_RDONLY | os.O_CLOEXEC)  # it is asked at each start of a process

    def count(self) -> int:
        """The number now; 0 where the kernel does not count (CONFIG_VM_EVENT_COUNTERS)."""
        return parse_oom_kills(os.pread(self._vmstat, files.SMALL, 0))


def parse_oom_kills(vmstat: bytes) -> int:
    """The line "oom_kill N" of /proc/vmstat."""
    _, found, rest = vmstat.partition(b"\noom_kill ")
    return int(rest.partition(b"\n")[0]) if found else 0
