"""`make bench`: measures, prints tables, writes JSON.

    python -m tests.bench [--only boot,layer] [--runs 5] [--output bench.json]
"""

from __future__ import annotations

import argparse
import compileall
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import imagebuild
import vch
from imagebuild.demo import write_demo
from imagebuild.home import home
from tests.bench.bench_boot import bench_boot
from tests.bench.bench_clone import bench_clone
from tests.bench.bench_files import bench_files
from tests.bench.bench_images import bench_images
from tests.bench.bench_layer import bench_layer
from tests.bench.bench_link_vm import bench_link_vm
from tests.bench.bench_spawn import bench_spawn
from tests.bench.measure import Report, show
from tests.debian_image import CannotBuild, cache_folder

DEFAULT_RUNS = 5  # the median of five is stable to a few per cent where CPU seconds are counted


def _boot(report: Report, runs: int) -> None:
    with tempfile.TemporaryDirectory(prefix="vch-bench-") as scratch:
        bench_boot(home(os.environ), Path(scratch), runs, report)
    show("cold boot: `vch run IMAGE echo x` beside a C program as PID 1 of the same VM", report.tables["cold boot"])


def _clone(report: Report, runs: int) -> None:
    bench_clone(home(os.environ), runs, report)
    show("clones: `vch run IMAGE true`", report.tables["clone"])


def _layer(report: Report, runs: int) -> None:
    folder = cache_folder() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    report.tables["layer"] = bench_layer(folder, runs)


def _images(report: Report, runs: int) -> None:
    folder = cache_folder() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    bench_images(folder, runs, report)


def _link_vm(report: Report, runs: int) -> None:
    bench_link_vm(home(os.environ), runs, report)


def _files(report: Report, runs: int) -> None:
    bench_files(home(os.environ), runs, report)


def _spawn(report: Report, _runs: int) -> None:
    with tempfile.TemporaryDirectory(prefix="vch-bench-") as scratch:
        write_demo(Path(scratch) / "demo")
        bench_spawn(f"oci:{scratch}/demo:demo", Path(scratch), report)


BENCHES: dict[str, Callable[[Report, int], None]] = {
    "boot": _boot,
    "clone": _clone,
    "layer": _layer,
    "link-vm": _link_vm,
    "images": _images,
    "files": _files,
    "spawn": _spawn,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", default=",".join(BENCHES), help=f"which: {', '.join(BENCHES)} (default: all)")
    parser.add_argument("--runs", type=int, default=DEFAULT_RUNS, help="measured runs of each case")
    parser.add_argument("--output", type=Path, help="write everything as JSON there")
    options = parser.parse_args()
    # As they are where they are installed, also if Python may not write bytecode here: a start is not to compile them.
    for package in (imagebuild, vch):
        compileall.compile_dir(Path(str(package.__file__)).parent, quiet=1)
    report = Report()
    for name in options.only.split(","):
        if name not in BENCHES:
            parser.error(f"no such bench: {name} (there are {', '.join(BENCHES)})")
        try:
            BENCHES[name](report, options.runs)
        except CannotBuild as reason:
            print(f"{name}: not measured here: {reason}", file=sys.stderr)
    for name, value in sorted(report.ratios.items()):
        print(f"{name}: {value:.2f}")
    for name, value in sorted(report.facts.items()):
        print(f"{name}: {value}")
    if options.output:
        report.write(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
