"""Processors and memory that are plugged into the running VM: waited for in a child of PID 1
(tether/requests/worker.py), or, before the VM is told what to run, in PID 1 itself.

The kernel finds them by itself (ACPI) and says so with an event; processors have to be switched on, and memory too
where the kernel was not built to do that (CONFIG_MEMORY_HOTPLUG_DEFAULT_ONLINE).
"""

import errno
import os

from tether.kernel import files
from tether.kernel.uevents import wait_for
from tether.link.late_messages import HardwareInUse, UseHardware

_CPUS = "/sys/devices/system/cpu"
_MEMORY = "/sys/devices/system/memory"
_MIB = 1 << 20
_PRESENT = b"1"


def use_hardware(wanted: UseHardware) -> HardwareInUse:
    """Waits until what is wanted is there, and switches it on.  Raises TetherError that says what is missing."""
    if wanted.cpus:
        wait_for(f"processor {wanted.cpus}", lambda: _enough_cpus(wanted.cpus), lambda: f"{_cpus()} run")
    if wanted.added_mib:
        wait_for(f"{wanted.added_mib} MiB of memory more", lambda: _enough_memory(wanted),
                 lambda: f"{_blocks() * _block_size() // _MIB} MiB are in use")
    return HardwareInUse(cpus=_cpus(), memory_kib=total_kib(files.read("/proc/meminfo").decode()))


def settle_in(wanted: UseHardware) -> HardwareInUse:
    """As use_hardware, for a VM that runs nothing yet: after this it is as if it had booted with all of it."""
    from tether.kernel.derived import derive_anew

    in_use = use_hardware(wanted)
    if wanted.added_mib:
        derive_anew(in_use.memory_kib)
    return in_use


def count_of(ranges: str) -> int:
    """How many numbers a list like "0-2,5" has (the kernel's cpulist)."""
    pairs = [part.partition("-") for part in ranges.strip().split(",") if part]
    return sum(int(last or first) - int(first) + 1 for first, _, last in pairs)


def blocks_wanted(wanted: UseHardware, block_size: int) -> int:
    """Blocks of memory that are online when all is: the kernel counts what it began with in whole blocks."""
    block_mib = block_size // _MIB
    return -(-wanted.boot_mib // block_mib) + wanted.added_mib // block_mib


def total_kib(meminfo: str) -> int:
    """MemTotal of /proc/meminfo."""
    return next(int(line.split()[1]) for line in meminfo.splitlines() if line.startswith("MemTotal:"))


def _enough_cpus(count: int) -> bool | None:
    for name in os.listdir(_CPUS):
        if name.startswith("cpu") and name[3:].isdigit():
            state = f"{_CPUS}/{name}/online"
            if files.read_if_there(state) == b"0\n":
                files.write(state, _PRESENT)
    return True if _cpus() >= count else None


def _enough_memory(wanted: UseHardware) -> bool | None:
    for state in _states():
        if files.read_if_there(state) == b"offline\n":
            _switch_on(state)
    return True if _blocks() >= blocks_wanted(wanted, _block_size()) else None


def _switch_on(state: str) -> None:
    try:
        files.write(state, b"online")
    except OSError as error:
        if error.errno != errno.EINVAL:  # the kernel was faster: it is online
            raise


def _states() -> list[str]:
    return [f"{_MEMORY}/{name}/state" for name in os.listdir(_MEMORY) if name.startswith("memory")]


def _blocks() -> int:
    return sum(files.read_if_there(state) == b"online\n" for state in _states())


def _block_size() -> int:
    return int(files.read(f"{_MEMORY}/block_size_bytes"), 16)


def _cpus() -> int:
    return count_of(files.read(f"{_CPUS}/online").decode())
