"""How much of a VM's memory kernel and agent take, and the least memory in which busybox runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

STEP_MIB = 4
FLOOR_MIB, CEILING_MIB = 24, 128  # the search begins with these; nothing boots in the first, everything in the second
TRY_SECONDS = 60
MEASURED_MIB = 128

# `vch run` refuses what is surely too little; here that is the question.
_WITHOUT_LIMIT = """
import sys, vch.launch
from vch.command.cli import main
vch.launch.LEAST_MEMORY = 0
sys.exit(main())
"""


def lost_kib(meminfo: str, memory_mib: int) -> tuple[int, int]:
    """KiB of the machine's memory that no process can have: by MemTotal, and by MemAvailable once the agent runs."""
    fields = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in meminfo.splitlines())}
    whole = memory_mib * 1024
    return whole - fields["MemTotal"], whole - fields["MemAvailable"]


def memory_lost(home: Path, kernel: str, image: str) -> tuple[int, int]:
    """The same, of a VM with MEASURED_MIB."""
    done = _run(home, kernel, MEASURED_MIB, image, "head", "-3", "/proc/meminfo")
    done.check_returncode()
    return lost_kib(done.stdout, MEASURED_MIB)


def least_memory(home: Path, kernel: str, image: str) -> int:
    """MiB in which busybox's `true` runs, to STEP_MIB."""

    def runs(mib: int) -> bool:
        try:
            return _run(home, kernel, mib, image, "true").returncode == 0
        except subprocess.TimeoutExpired:  # killed with its machine; too little to get anywhere
            return False

    return least(runs, FLOOR_MIB, CEILING_MIB, STEP_MIB)


def least(runs: Callable[[int], bool], low: int, high: int, step: int) -> int:
    """The least number that `runs`, by bisection in steps from `low`, which is taken not to, to `high`, which does."""
    while high - low > step:
        middle = low + (high - low) // (2 * step) * step
        low, high = (low, middle) if runs(middle) else (middle, high)
    return high


def _run(home: Path, kernel: str, mib: int, image: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _WITHOUT_LIMIT, "run", "--cold", "-m", f"{mib}m", image, *words]
    environment = {**os.environ, "VCH_HOME": str(home), "VCH_KERNEL": kernel}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TRY_SECONDS, check=False)
