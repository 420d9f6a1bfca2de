"""What a cold `vch run` costs beside its floor: the same kernel, devices and firmware with a C program as PID 1."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from imagebuild.boot import cpio
from imagebuild.boot.boot_image import build_initramfs
from imagebuild.boot.kernel import choose as choose_kernel
from imagebuild.demo import write_demo
from imagebuild.store.store import Store
from imagebuild.transfer.pulling import PullPolicy, pull
from tests.bench.boot_memory import MEASURED_MIB, least_memory, memory_lost
from tests.bench.measure import RUN_SECONDS, Report, Row, Sample, alternate, cpu_of, ratio, run_command
from vch.disks import DiskSet
from vch.qemu import accel
from vch.qemu import config as qemu
from vch.qemu.boot_plan import boot_files, find_firmware, kernel_arguments
from vch.settings import DEFAULT_CPUS, DEFAULT_MEMORY, DISK_SIZE, MIB

ROOT = Path(__file__).parents[2]
VCH = ROOT / ".venv/bin/vch"
FLOOR_SOURCE, WORK_SOURCE = (Path(__file__).with_name(name) for name in ("floor_init.c", "floor_work.c"))
MACHINE_CPU = "QEMU CPU"  # seconds of QEMU alone, from its start to the first output: the session's, or of the C /init
KERNELS = ("debian-cloud", "pico")
WORK = "an agent's work in C"
AGENT, INTERPRETER, IN_C = "agent", "interpreter", "in C"  # seconds by the guest's clock


def bench_boot(home: Path, scratch: Path, runs: int, report: Report) -> None:
    """Adds a table for each kernel that is there, the ratios to their floors, and sizes."""
    layout = home / "demo"
    write_demo(layout)
    image = f"oci:{layout}:demo"
    floor, work = (_c_initramfs(scratch, source) for source in (FLOOR_SOURCE, WORK_SOURCE))
    cases: dict[str, Callable[[], Sample]] = {}
    for name in KERNELS:
        kernel = choose_kernel(home, name if name != "pico" else None)
        if kernel.name != name:
            continue
        initramfs = build_initramfs(kernel, home)
        report.facts[f"{name}: kernel bytes"] = kernel.image.stat().st_size
        report.facts[f"{name}: initramfs bytes"] = initramfs.size
        cases[f"{name}: floor"] = _floor(home, image, name, floor)
        cases[f"{name}: vch run true"] = _run(home, image, name, scratch)
        if kernel.modules is None:
            cases[f"{name}: {WORK}"] = _floor(home, image, name, work)
    rows = alternate(cases, runs)
    report.tables["cold boot"] = rows
    for name in KERNELS:
        if f"{name}: floor" in cases:
            ours, least = f"{name}: vch run true", f"{name}: floor"
            report.ratios[f"{name}: vch run / floor"] = ratio(rows, ours, least)
            report.ratios[f"{name}: QEMU to first output / floor"] = _to_first_output(rows, ours, least)
            if f"{name}: {WORK}" in cases:
                report.ratios[f"{name}: agent to execve / (interpreter + the same in C)"] = _to_execve(rows, name)
            _memory(home, name, image, report)
    if all(f"{name}: floor" in cases for name in KERNELS):
        report.ratios["to /init and off: debian-cloud / pico"] = ratio(rows, "debian-cloud: floor", "pico: floor")
        report.ratios["to /init: debian-cloud / pico"] = _to_init(rows, "debian-cloud: floor", "pico: floor")
    report.facts["agent resident MiB"] = _agent_mib(rows)


def _run(home: Path, image: str, kernel: str, scratch: Path) -> Callable[[], Sample]:
    """The whole command, as a user runs it; "first" is when the first byte of output arrived."""
    timing = scratch / "timing.json"
    environment = {**os.environ, "VCH_HOME": str(home), "VCH_KERNEL": kernel}

    def case() -> Sample:
        command = [str(VCH), "run", "--cold", "--timing-file", str(timing), image, "echo", "x"]
        before = os.times()
        began = time.monotonic()
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.read(1)
            first = time.monotonic() - began
            machine = _machine_cpu(process.pid)
            process.wait(RUN_SECONDS)
        wall, after = time.monotonic() - began, os.times()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        told = json.loads(timing.read_text())
        phases = told["guest"]
        extra = {"first": first, MACHINE_CPU: machine, **told["laps"], "agent MiB": told["agent_kib"] / 1024,
                 INTERPRETER: phases["start interpreter"], AGENT: sum(phases.values())}
        return Sample(cpu, wall, told["qemu_peak_kib"] / 1024, extra)

    return case


def _floor(home: Path, image: str, kernel_name: str, initramfs: Path) -> Callable[[], Sample]:
    """QEMU as `vch run` starts it, with the C program."""
    program = accel.find_qemu()
    kernel = choose_kernel(home, kernel_name)
    verdict = accel.choose("auto", home / "state", kernel.pvh or kernel.image, program)
    words = kernel_arguments(kernel, verdict.accelerator, DEFAULT_CPUS, debug=False)
    boot = boot_files(kernel, initramfs, words, find_firmware(program))
    disk = pull(image, store=Store(home / "images"), policy=PullPolicy.MISSING).disk()

    def case() -> Sample:
        with ExitStack() as held:
            disks = DiskSet(home)
            held.callback(disks.close)
            disks.add_image("image", disk)
            disks.add_unnamed("top", DISK_SIZE)
            config = qemu.MachineConfig(
                name="floor",
                accelerator=verdict.accelerator,
                memory_mib=DEFAULT_MEMORY // MIB,
                cpus=DEFAULT_CPUS,
                boot=boot,
                drives=tuple(disks.drives),
                network=qemu.UserNetwork("02:00:00:00:00:01"),
                fd_sets=disks.fd_sets,
            )
            null = os.open(os.devnull, os.O_RDWR)
            held.callback(os.close, null)
            command = _with_null_channels(qemu.command_line(config, qemu.Channels(null, null, null), program))
            reached: dict[str, float] = {}

            def at_init(process: subprocess.Popen[bytes]) -> None:
                assert process.stdout is not None
                said = process.stdout.readline().split()  # as soon as it has begun, or when it has done its work
                reached[MACHINE_CPU] = cpu_of(process.pid)
                if said[0] == b"work":
                    reached[IN_C] = int(said[1]) / 1e6

            whole = run_command(command, at_init, pass_fds=tuple(config.fd_sets.values()), stdin=subprocess.DEVNULL)
            return replace(whole, extra=reached)

    return case


def _with_null_channels(command: list[str]) -> list[str]:
    """The same devices with nobody at the other end: chardevs that swallow everything, no monitor; the console is
    standard output."""
    words = []
    console = next(at for at, word in enumerate(command) if word.endswith(f",set={qemu.CONSOLE_SET}"))
    for word in (*command[: console - 1], *command[console + 1 :]):
        if word.startswith("file,id=console,"):
            words.append("stdio,id=console,signal=off")
        elif word.startswith("socket,id="):
            words.append("null," + word.split(",")[1])
        else:
            words.append(word)
    return words


def _c_initramfs(scratch: Path, source: Path) -> Path:
    program = scratch / source.stem
    subprocess.run(["gcc", "-static", "-Os", "-s", "-o", program, source], check=True, timeout=RUN_SECONDS)
    content = [cpio.file("init", program.read_bytes(), 0o755), cpio.character_device("dev/console", 5, 1)]
    archive = scratch / f"{source.stem}.cpio"
    archive.write_bytes(cpio.archive(content))
    return archive


def _machine_cpu(pid: int) -> float:
    """CPU seconds of the QEMU that the process `pid` has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    return sum(cpu_of(int(child)) for child in children)


def _to_first_output(rows: list[Row], ours: str, least: str) -> float:
    """QEMU's CPU up to the first output, over that of the whole floor."""
    by_case = {row.case: row for row in rows}
    return round(by_case[ours].extra[MACHINE_CPU] / by_case[least].cpu, 3)


def _to_init(rows: list[Row], ours: str, least: str) -> float:
    """The same of two floors, up to the first line of the C program."""
    by_case = {row.case: row for row in rows}
    return round(by_case[ours].extra[MACHINE_CPU] / by_case[least].extra[MACHINE_CPU], 3)


def _to_execve(rows: list[Row], kernel: str) -> float:
    """From the kernel's execve of PID 1 to the session's, over the interpreter's own start and the same work done by C.

    By the guest's clock; the agent's steps, without what it waits for the host."""
    by_case = {row.case: row.extra for row in rows}
    ours, in_c = by_case[f"{kernel}: vch run true"], by_case[f"{kernel}: {WORK}"]
    return round(ours[AGENT] / (ours[INTERPRETER] + in_c[IN_C]), 3)


def _memory(home: Path, kernel: str, image: str, report: Report) -> None:
    total, available = memory_lost(home, kernel, image)
    report.facts[f"{kernel}: MiB of {MEASURED_MIB} not in MemTotal"] = round(total / 1024, 1)
    report.facts[f"{kernel}: MiB of {MEASURED_MIB} not in MemAvailable"] = round(available / 1024, 1)
    report.facts[f"{kernel}: least MiB for busybox true"] = least_memory(home, kernel, image)


def _agent_mib(rows: list[Row]) -> float:
    return max(row.extra.get("agent MiB", 0.0) for row in rows)
