"""Files out of a machine and into it, beside the same bytes as the plain streams of `cat` in the same VM.

Cases take turns in one machine.  CPU seconds of QEMU and of this process together: wall times of an emulated machine on
a busy host say little.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

import vch
from imagebuild.demo import write_demo
from tests.bench.measure import Report

MIB = 1 << 20
FILES, SIZE = 100, MIB  # 100 MB in files of a size that source trees and build results have in between
SMALL_FILES, SMALL_SIZE = 2000, 1000


def bench_files(home: Path, runs: int, report: Report) -> None:
    """Adds facts and ratios to the report."""
    layout = home / "demo"
    write_demo(layout)
    with (
        vch.Machine(f"oci:{layout}:demo", network="none", memory="512m") as machine,
        tempfile.TemporaryFile() as archive,
        open(os.devnull, "wb") as nowhere,
    ):
        machine.exec("mkdir", "/in", check=True)
        _fill(machine, "tree", FILES, SIZE)
        _fill(machine, "small", SMALL_FILES, SMALL_SIZE)
        machine.get_archive("/tree", archive.fileno())
        cases: dict[str, Callable[[], None]] = {
            "cat out": lambda: _cat_out(machine, nowhere.fileno()),
            "get": lambda: machine.get_archive("/tree", nowhere.fileno()),
            "cat in": lambda: _cat_in(machine, archive.fileno()),
            "put": lambda: _put(machine, archive.fileno()),
            "get small": lambda: machine.get_archive("/small", nowhere.fileno()),
        }
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for _ in range(runs + 1):  # the first round warms the caches and translates the code
            for name, case in cases.items():
                spent[name].append(_measured(case))
    cpu = {name: statistics.median(sample[0] for sample in samples[1:]) for name, samples in spent.items()}
    wall = {name: statistics.median(sample[1] for sample in samples[1:]) for name, samples in spent.items()}
    for name in cases:
        report.facts[f"files: {name}"] = f"{cpu[name]:.2f} CPU s, {wall[name]:.2f} s"
    report.facts["files: get small, a file"] = f"{cpu['get small'] / SMALL_FILES * 1000:.2f} CPU ms"
    report.ratios["files: get of a tree / cat of its files"] = cpu["get"] / cpu["cat out"]
    report.ratios["files: put of a tree / cat of its archive to one file"] = cpu["put"] / cpu["cat in"]


def _fill(machine: vch.Machine, name: str, count: int, size: int) -> None:
    """A folder of files in the machine's root."""
    with tempfile.TemporaryDirectory(prefix="vch-bench-") as scratch:
        folder = Path(scratch) / name
        folder.mkdir()
        for number in range(count):
            (folder / str(number)).write_bytes(os.urandom(size))
        machine.put(folder, "/")


def _measured(case: Callable[[], None]) -> tuple[float, float]:
    """CPU seconds of this process and QEMU, and seconds by the clock."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]

    def used() -> float:
        return float(sum(one.cpu_times().user + one.cpu_times().system for one in processes))

    before, began = used(), time.monotonic()
    case()
    return used() - before, time.monotonic() - began


def _cat_out(machine: vch.Machine, sink: int) -> None:
    session = machine.popen("sh", "-c", "cat /tree/*", stdio=vch.Stdio(stdout=sink))
    assert session.wait() == 0


def _cat_in(machine: vch.Machine, source: int) -> None:
    os.lseek(source, 0, os.SEEK_SET)
    session = machine.popen("sh", "-c", "cat > /in/file; rm /in/file", stdio=vch.Stdio(stdin=source))
    assert session.wait() == 0


def _put(machine: vch.Machine, source: int) -> None:
    os.lseek(source, 0, os.SEEK_SET)
    machine.put_archive(source, "/in")
    machine.exec("rm", "-r", "/in/tree", check=True)
