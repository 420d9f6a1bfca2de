"""What starting a process in a container costs beside a C program that forks, changes its root and executes.

The machine is emulated and counts instructions instead of time (QEMU's -icount), so a clock of the guest tells how many
were executed, whatever else the host does.  Only ratios are meant: the length of the guest's nanosecond is a guess.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.measure import RUN_SECONDS, Report
from tests.vm.harness import Container, container
from vch.machine.session import Stdio
from vch.options.process_values import DEFAULT_CAPABILITIES
from vch.qemu import accel

FLOOR_SOURCE = Path(__file__).with_name("floor_spawn.c")
PROGRAM = "/bin/true"
COUNT = 20
AGENTS_SIZE = 8 << 20  # bytes that fork copies of PID 1, near enough
COUNTING = """#!/bin/bash
# QEMU that counts instructions; that cannot be done in several threads.
words=(); for word in "$@"; do words+=("${{word//,thread=multi/}}"); done
exec {program} "${{words[@]}}" -icount shift=0,sleep=off
"""


def bench_spawn(image: str, scratch: Path, report: Report) -> None:
    """Adds the ratios of an exec to the C program."""
    floor = scratch / "floor-spawn"
    subprocess.run(["gcc", "-static", "-O2", "-s", "-o", floor, FLOOR_SOURCE], check=True, timeout=RUN_SECONDS)
    with _counting(scratch), container("--network", "none", image, "sleep", "1000000") as made:
        with floor.open("rb") as program:
            script = "cat > /floor-spawn; chmod 755 /floor-spawn"
            session, _ = made.machine.exec(made.process("sh", "-c", script, stdin=True), Stdio(stdin=program.fileno()))
            assert session.wait(RUN_SECONDS) == 0
        least = _floor(made, 0)
        report.ratios["exec / C fork+chroot+exec"] = round(_exec(made) / least, 2)
        report.ratios["exec with Docker's capabilities / C"] = round(
            _exec(made, capabilities=DEFAULT_CAPABILITIES) / least, 2)
        report.ratios["C with the agent's memory / C"] = round(_floor(made, AGENTS_SIZE) / least, 2)


def _floor(made: Container, resident: int) -> int:
    return int(made.exec("/floor-spawn", str(COUNT), str(resident), PROGRAM).out)


def _exec(made: Container, **process: object) -> float:
    """Nanoseconds of the guest from the request to the program, by the agent's own account; the median."""
    taken = []
    for _ in range(COUNT):
        session, started = made.machine.exec(made.process(PROGRAM, **process), Stdio())
        session.wait(RUN_SECONDS)
        taken.append(started.phases[-1].took_us * 1000)
    return statistics.median(taken)


@contextmanager
def _counting(scratch: Path) -> Iterator[None]:
    """Machines are started by a QEMU that counts instructions."""
    before = {name: os.environ.get(name) for name in ("VCH_QEMU", "VCH_ACCEL", "VCH_TEMPLATES")}
    program = scratch / "qemu-system-x86_64"
    program.write_text(COUNTING.format(program=shutil.which(accel.find_qemu())))
    program.chmod(0o755)
    os.environ.update(VCH_QEMU=str(program), VCH_ACCEL="tcg", VCH_TEMPLATES="off")
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
