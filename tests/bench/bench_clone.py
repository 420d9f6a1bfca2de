"""What a clone costs beside a machine that boots; what clones of one template share; what a pool saves."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import vch
from imagebuild.boot.kernel import choose as choose_kernel
from imagebuild.demo import write_demo
from tests.bench.measure import RUN_SECONDS, Report, Row, Sample, alternate
from vch import settings
from vch.clone.store import WANTED
from vch.launch import Launch, new_id
from vch.machine.machine import Machine
from vch.options.run_options import parse_run
from vch.prepare import prepare
from vch.qemu.config import MachineConfig

VCH = Path(__file__).parents[2] / ".venv/bin/vch"
KERNELS = ("debian-cloud", "pico")
QEMU_CPU = "QEMU CPU"
FIRST = "first clone of an image"
DENSITIES = (1, 8, 32)
SETTLE_SECONDS = 1.0  # after the last of them has said that it is ready
PINGS = 20
POOL_STARTS = 5
QUIET_SECONDS = 5.0
KIB = 1024


def bench_clone(home: Path, runs: int, report: Report) -> None:
    """Adds the table, the ratios, and facts."""
    layout = home / "demo"
    write_demo(layout)
    image = f"oci:{layout}:demo"
    kernels = [name for name in KERNELS if choose_kernel(home, name if name != "pico" else None).name == name]
    with tempfile.TemporaryDirectory(prefix="vch-bench-", dir="/dev/shm") as templates:
        plain, rooted = (Path(templates, name) for name in ("plain", "rooted"))
        plain.mkdir()
        rooted.mkdir()
        os.environ.update(VCH_HOME=str(home), VCH_TEMPLATES=str(rooted))
        cases: dict[str, Callable[[], Sample]] = {"python3 -c 'import vch'": _import}
        for name in kernels:
            cases[f"{name}: boots"] = _run(name, image, rooted, "--cold")
            cases[f"{name}: {FIRST}"] = _first(name, image, plain)
            cases[f"{name}: clone"] = clone = _run(name, image, rooted)
            clone()  # leaves the template of all machines, and the next one that of the image
            report.facts[f"{name}: what making the image's template takes, CPU s"] = _made(clone)
        rows = alternate(cases, runs)
        report.tables["clone"] = rows
        _ratios(rows, kernels, report)
        _density(image, report)
        _pool(image, report)


def _made(clone: Callable[[], Sample]) -> float:
    """Seconds of CPU that making an image's template takes: this run's, less the next one's."""
    making, after = clone(), clone()
    return round(making.cpu - after.cpu, 2)


def _first(kernel: str, image: str, templates: Path) -> Callable[[], Sample]:
    """A clone of an image that was never run before: it is forgotten that it was."""
    run = _run(kernel, image, templates)

    def case() -> Sample:
        for note in templates.glob(f"*/{WANTED}*"):
            note.unlink()
        return run()

    return case


def _run(kernel: str, image: str, templates: Path, *words: str) -> Callable[[], Sample]:
    """The whole command, and of it QEMU."""

    def case() -> Sample:
        with tempfile.NamedTemporaryFile() as timing:
            command = [str(VCH), "run", *words, "--timing-file", timing.name, image, "true"]
            sample = _measured(command, {**os.environ, "VCH_KERNEL": kernel, "VCH_TEMPLATES": str(templates)})
            told = json.loads(Path(timing.name).read_text())
        return Sample(sample.cpu, sample.wall, told["qemu_peak_kib"] / KIB, {QEMU_CPU: told["qemu_cpu"]})

    return case


def _import() -> Sample:
    return _measured([sys.executable, "-c", "import vch"], dict(os.environ))


def _measured(command: list[str], environment: dict[str, str]) -> Sample:
    before, began = os.times(), time.monotonic()
    subprocess.run(command, env=environment, check=True, timeout=RUN_SECONDS, stdout=subprocess.DEVNULL)
    wall, after = time.monotonic() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Sample(cpu, wall, 0.0)


def _ratios(rows: list[Row], kernels: list[str], report: Report) -> None:
    by_case = {row.case: row for row in rows}
    for name in kernels:
        boots, clone = by_case[f"{name}: boots"], by_case[f"{name}: clone"]
        report.ratios[f"{name}: QEMU's CPU, clone / boots"] = round(clone.extra[QEMU_CPU] / boots.extra[QEMU_CPU], 3)
        first = by_case[f"{name}: {FIRST}"].extra[QEMU_CPU] / boots.extra[QEMU_CPU]
        report.ratios[f"{name}: QEMU's CPU, {FIRST} / boots"] = round(first, 3)
        least = by_case["python3 -c 'import vch'"].cpu + clone.extra[QEMU_CPU]
        report.ratios[f"{name}: vch run / (import vch + QEMU)"] = round(clone.cpu / least, 3)


def _density(image: str, report: Report) -> None:
    """Clones that wait for their spec: what each takes of the host, and how many start in a second."""
    options = parse_run([image], os.environ)
    configured = settings.load(os.environ)
    prepared = prepare(options, configured, lambda _line: None)
    with ExitStack() as kept:
        kept.callback(prepared.lease.release)
        launch = Launch(options, configured, prepared, new_id(), {})
        disks = launch.disks()
        kept.callback(disks.close)
        config = launch.config(disks, ())
        waiting = config._replace(drives=(), fd_sets={})  # as a pool keeps them
        own = {}
        for count in DENSITIES:
            whole, own[count], took = _idle([waiting] * count, launch)
            report.facts[f"{count} idle clones: MiB each, proportional"] = round(whole, 1)
            report.facts[f"{count} idle clones: MiB each, of guest RAM their own"] = round(own[count], 2)
            report.facts[f"{count} clones: started in a second"] = round(count / took, 2)
        report.facts["with its disks: MiB of guest RAM its own"] = round(_idle([config], launch)[1], 2)
        few, many = DENSITIES[0], DENSITIES[-1]
        report.facts["guest RAM of one more idle clone, MiB"] = round(
            (own[many] * many - own[few] * few) / (many - few), 2)


def _idle(configs: list[MachineConfig], launch: Launch) -> tuple[float, float, float]:
    """MiB of each: its proportional share, and its own guest RAM; and the seconds that all of them took to start."""
    with ExitStack() as held:
        began = time.monotonic()
        for config in configs:
            held.enter_context(Machine(config, launch.prepared.program, cloning=launch.cloning()))
        took = time.monotonic() - began
        time.sleep(SETTLE_SECONDS)
        found = [memory_of(pid) for pid in _machines()]
    whole, own = (sum(column) / len(configs) / KIB for column in zip(*found, strict=True))
    return whole, own, took


def memory_of(pid: int) -> tuple[int, int]:
    """KiB of a QEMU: its proportional share of memory, and how much of its guest's RAM is its own (proc(5), smaps)."""
    whole = own = 0
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            ours = line.rstrip().endswith("/memory")
        elif words[0] == "Pss:":
            whole += int(words[1])
        elif words[0] == "Anonymous:" and ours:
            own += int(words[1])
    return whole, own


def _machines() -> list[int]:
    """Our QEMUs."""
    tasks = Path("/proc/self/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    return [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().startswith("qemu")]


def _pool(image: str, report: Report) -> None:
    """From a pool: a machine's whole start, an exec in it, and a ping, in milliseconds."""
    for name, with_root in (("pool", False), ("pool with roots", True)):
        starts = []
        with vch.Pool(refill_seconds=0.0, with_root=with_root) as pool:
            for _ in range(POOL_STARTS + 1):
                with ExitStack() as held:
                    machine = vch.Machine(image, pool=pool)
                    starts.append(_milliseconds(lambda: held.enter_context(machine)))  # noqa: B023 - called at once
                while not pool.waiting():
                    time.sleep(0.05)
        report.facts[f"{name}: start, ms"] = statistics.median(starts[1:])
    with vch.Pool(refill_seconds=QUIET_SECONDS) as pool:  # no other machine is started beside the one that is measured
        with vch.Machine(image, pool=pool):
            pass
        while not pool.waiting():
            time.sleep(0.05)
        with vch.Machine(image, pool=pool) as machine:
            execs = [_started(machine) for _ in range(PINGS)]
            pings = statistics.median(_milliseconds(machine.machine.ping) for _ in range(PINGS))
            report.facts["pool: ping, ms"] = pings
            report.facts["pool: first exec started, ms"] = execs[0]
            report.facts["pool: exec started, ms"] = statistics.median(execs)
            report.ratios["pool: exec started / ping"] = round(statistics.median(execs) / pings, 1)


def _started(machine: vch.Machine) -> float:
    """Milliseconds until a program runs; its end is awaited, but is no part of that."""
    began = time.monotonic()
    session = machine.popen("true")
    took = time.monotonic() - began
    session.wait(RUN_SECONDS)
    return round(1000 * took, 2)


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return round(1000 * (time.monotonic() - began), 2)
