"""Measuring whole processes fairly: cases take turns, CPU seconds count, medians are compared.

A shared machine makes wall times meaningless on their own; what can be trusted is the CPU time a process tree used,
and the ratio of two things measured in turns in one run.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RUN_SECONDS = 600  # no single run of a benchmark takes this long unless something hangs


@dataclass(frozen=True)
class Sample:
    """One run: seconds of CPU (user + system, children included), seconds by the clock, peak memory in MiB."""

    cpu: float
    wall: float
    peak_mib: float
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """The medians of one case, with what a table shows."""

    case: str
    runs: int
    cpu: float
    wall: float
    peak_mib: float
    extra: Mapping[str, float]


@dataclass
class Report:
    """Everything one `make bench` found: tables by title, and plain facts by name."""

    tables: dict[str, list[Row]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Writes the report as JSON."""
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "kernel": platform.release()}
        path.write_text(json.dumps({"machine": machine, **asdict(self)}, indent=2, sort_keys=True) + "\n")


def run_command(
    argv: Sequence[str], while_it_runs: Callable[[subprocess.Popen[bytes]], None] | None = None, **options: Any
) -> Sample:
    """Runs a command to its end and measures its process tree.  Raises CalledProcessError with its stderr."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        if while_it_runs is not None:
            while_it_runs(process)
        _, errors = process.communicate(timeout=RUN_SECONDS)
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv, stderr=errors.decode(errors="replace")[-2000:])
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return Sample(cpu, wall, after.ru_maxrss / 1024)


def cpu_of(pid: int) -> float:
    """CPU seconds (user + system) of a process so far (proc(5): stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def alternate(cases: Mapping[str, Callable[[], Sample]], runs: int) -> list[Row]:
    """Runs the cases in turns, `runs` times each, after one unmeasured turn that fills caches."""
    samples: dict[str, list[Sample]] = {name: [] for name in cases}
    for turn in range(runs + 1):
        for name, case in cases.items():
            sample = case()
            if turn:
                samples[name].append(sample)
    return [_median(name, taken) for name, taken in samples.items()]


def _median(name: str, taken: Sequence[Sample]) -> Row:
    def middle(values: Sequence[float]) -> float:
        return round(statistics.median(values), 4)

    extra = {key: middle([sample.extra[key] for sample in taken if key in sample.extra]) for key in taken[0].extra}
    return Row(
        name,
        len(taken),
        middle([sample.cpu for sample in taken]),
        middle([sample.wall for sample in taken]),
        middle([sample.peak_mib for sample in taken]),
        extra,
    )


def ratio(rows: Sequence[Row], case: str, floor: str) -> float:
    """CPU of one case over CPU of another."""
    cpu = {row.case: row.cpu for row in rows}
    return round(cpu[case] / cpu[floor], 3)


def show(title: str, rows: Sequence[Row]) -> None:
    """Prints a table."""
    columns = list(dict.fromkeys(key for row in rows for key in row.extra))
    width = max(len(row.case) for row in rows)
    heads = "".join(f"  {column:>12}" for column in columns)
    print(f"\n{title}\n{'':{width}}  runs  CPU s   wall s  peak MiB{heads}")
    for row in rows:
        cells = "".join(f"  {row.extra[column]:>12.3f}" if column in row.extra else f"  {'':>12}" for column in columns)
        print(f"{row.case:{width}}  {row.runs:>4}  {row.cpu:<6.3f}  {row.wall:<6.3f}  {row.peak_mib:>8.1f}{cells}")
