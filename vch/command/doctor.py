"""`vch doctor`: what this host can do, how that was found out, and what to do about what it cannot.

Each check is a function that gives a Finding and never raises for what it finds.  Exit code 1 if nothing can run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from imagebuild.errors import OperationError
from vch import settings as settings_module
from vch.errors import UsageError
from vch.options.pflag import Flag, HelpRequested, Kind, parse
from vch.qemu import accel
from vch.qemu.boot_plan import find_firmware
from vch.qemu.config import Accelerator
from vch.qemu.process import REMEDY_INSTALL
from vch.settings import GIB, LEAST_MEMORY, MIB, Settings

VERSION_SECONDS = 10.0
OLDEST_QEMU = (7, 2)  # Debian 12's: what everything here is tried with
DISK_WANTED = 2 * GIB  # kernel, boot image and a few images
VSOCK_DEVICE = Path("/dev/vhost-vsock")
# Programs that are used if they are there: what for, and Debian's package.
PROGRAMS = {
    "apt-get": ("fetch Debian's kernel", "apt"),
    "python3.11": ("build the boot image", "python3.11-minimal"),
}
_FLAGS = (Flag("json", "", Kind.SWITCH, "", "print the findings as JSON"),)
_HELP = """Usage:  vch doctor [--json]

Says what this host can do. Exit code 1 if no container can run.

Examples:
  vch doctor
  vch doctor --json | python3 -m json.tool"""


class Level(Enum):
    """How bad it is."""

    GOOD = "ok"
    NOTE = "note"  # works, but could be better
    BAD = "bad"  # nothing can run


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    subject: str
    level: Level
    value: str
    remedy: str = ""


def main(words: Sequence[str]) -> int:
    """The command."""
    try:
        given, rest = parse(_FLAGS, words)
    except HelpRequested:
        print(_HELP)
        return 0
    except UsageError as error:
        raise UsageError(error.cause, "vch doctor") from error
    if rest:
        raise UsageError('"vch doctor" accepts no arguments.', "vch doctor")
    findings = examine(settings_module.load(os.environ))
    healthy = all(finding.level is not Level.BAD for finding in findings)
    if given:
        document = [{**asdict(finding), "level": finding.level.value} for finding in findings]
        print(json.dumps({"can_run": healthy, "findings": document}, indent=1))
    else:
        show(findings)
    return 0 if healthy else 1


def examine(settings: Settings) -> list[Finding]:
    """Everything, in the order in which a start would meet it."""
    program = shutil.which(settings.qemu)
    return [
        _qemu(settings.qemu, program),
        *_kernels(settings),
        _accelerator(settings, program),
        _vsock(),
        _memory(settings),
        _disk(settings.home),
        *_programs(),
    ]


def show(findings: Sequence[Finding]) -> None:
    """A table for people."""
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{finding.level.value:<5} {finding.subject:<{width}}  {finding.value}")
        if finding.remedy:
            print(f"{'':<{width + 8}}-> {finding.remedy}")


def parse_version(text: str) -> tuple[int, int, int] | None:
    """"QEMU emulator version 7.2.22 (...)" -> (7, 2, 22)."""
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def _qemu(name: str, program: str | None) -> Finding:
    if program is None:
        return Finding("QEMU", Level.BAD, f"{name} is not installed", REMEDY_INSTALL)
    try:
        command = [program, "--version"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=VERSION_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("QEMU", Level.BAD, f"{program}: {error}", REMEDY_INSTALL)
    version = parse_version(told.stdout)
    if version is None:
        return Finding("QEMU", Level.BAD, f"{program} does not tell its version: {(told.stdout or told.stderr)[:80]!r}")
    shown = ".".join(map(str, version)) + f" ({program})" + ("" if find_firmware(program) else ", without qboot")
    if version[:2] < OLDEST_QEMU:
        oldest = ".".join(map(str, OLDEST_QEMU))
        return Finding("QEMU", Level.NOTE, shown, f"nothing older than {oldest} has been tried")
    return Finding("QEMU", Level.GOOD, shown)


def _kernels(settings: Settings) -> list[Finding]:
    from imagebuild.boot import kernel, kernel_cache, pico

    built = pico.pico(settings.home)
    fetched = kernel_cache.newest(settings.home, kernel.DEBIAN)
    findings = [
        Finding("pico kernel", Level.GOOD, built.release)
        if built
        else Finding("pico kernel", Level.NOTE, "not built", "make pico: machines boot twice as fast, and mount NFS")
    ]
    if fetched:
        findings.append(Finding("Debian kernel", Level.GOOD, fetched[0].release))
    elif shutil.which("apt-get"):
        findings.append(Finding("Debian kernel", Level.GOOD, "not fetched yet: the first machine will"))
    else:
        level = Level.NOTE if built else Level.BAD
        findings.append(Finding("Debian kernel", level, "cannot be fetched: there is no apt-get", "make pico"))
    return findings


def _accelerator(settings: Settings, program: str | None) -> Finding:
    subject = "accelerator"
    if program is None:
        return Finding(subject, Level.BAD, "unknown without QEMU")
    from imagebuild.boot import kernel, kernel_cache, pico

    fetched = kernel_cache.newest(settings.home, kernel.DEBIAN)
    found = pico.pico(settings.home) or (fetched[0] if fetched else None)
    if found is None:
        return Finding(subject, Level.NOTE, "not tried: there is no kernel here yet", "run a machine, then ask again")
    try:
        verdict = accel.choose(settings.accelerator, settings.state, found.pvh or found.image, program, fresh=True)
    except OperationError as error:
        return Finding(subject, Level.BAD, str(error))
    if verdict.accelerator is Accelerator.KVM:
        return Finding(subject, Level.GOOD, f"KVM: {verdict.reason}")
    return Finding(subject, Level.NOTE, f"TCG, QEMU's emulator: {verdict.reason}", "works, but is many times slower")


def _vsock() -> Finding:
    if os.access(VSOCK_DEVICE, os.R_OK | os.W_OK):
        return Finding("vsock", Level.GOOD, f"{VSOCK_DEVICE} can be used")
    state = "may not be opened" if VSOCK_DEVICE.exists() else "is not there"
    return Finding("vsock", Level.GOOD, f"{VSOCK_DEVICE} {state}; not needed: vch brings a vsock device of its own")


def _memory(settings: Settings) -> Finding:
    available = read_meminfo(Path("/proc/meminfo").read_text(), "MemAvailable")
    shown = f"{available // MIB} MiB available, {settings.memory // MIB} MiB for each machine"
    if available < LEAST_MEMORY:
        return Finding("memory", Level.BAD, shown, f"a machine needs at least {LEAST_MEMORY // MIB} MiB")
    if available < settings.memory:
        return Finding("memory", Level.NOTE, shown, "use less: -m, VCH_MEMORY")
    return Finding("memory", Level.GOOD, shown)


def read_meminfo(text: str, key: str) -> int:
    """Bytes of a line of /proc/meminfo (proc(5)), 0 if it has none."""
    found = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _disk(folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    shown = f"{free // MIB} MiB free in {folder}"
    if not os.access(there, os.W_OK):
        return Finding("disk", Level.BAD, f"{there} cannot be written", "set VCH_HOME to a folder of yours")
    if free < DISK_WANTED:
        return Finding("disk", Level.NOTE, shown, "make room, or set VCH_HOME to a folder with more")
    return Finding("disk", Level.GOOD, shown)


def _programs() -> list[Finding]:
    return [
        Finding(name, Level.NOTE, f"not installed; needed to {purpose}", f"apt-get install {package}")
        for name, (purpose, package) in PROGRAMS.items()
        if shutil.which(name) is None
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
