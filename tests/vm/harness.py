"""A container VM for tests that look at the agent: boots once, then runs as many processes in it as a test wants."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tether.link.messages import Started
from tether.spec import Identity, Process, Spec
from vch import settings
from vch.clone.origin import Cloning
from vch.clone.store import Store
from vch.disks import DiskSet
from vch.machine.machine import Machine
from vch.machine.session import Session, Stdio
from vch.machine.sinks import Collector
from vch.options.run_options import RunOptions, parse_run
from vch.options.spec_plan import IMAGE_SERIAL, TOP_SERIAL, VOLUME_SERIAL, Placement, build_spec, volume_mounts
from vch.prepare import prepare
from vch.qemu.config import Drive, MachineConfig, UserNetwork

MAC = "02:00:00:00:00:01"
MEMORY_MIB = 256
WAIT_S = 120.0  # for one process, on a host that emulates and is busy
MIB = 1 << 20
OUTPUT_LIMIT = 8 * MIB


@dataclass
class Output:
    """What a process did."""

    code: int
    out: str
    err: str


class Container:
    """A machine whose primary process runs."""

    def __init__(self, machine: Machine, spec: Spec) -> None:
        self.machine, self.spec = machine, spec
        self.started: Started | None = None
        self.primary: Session | None = None
        self.out, self.err = Collector(OUTPUT_LIMIT), Collector(OUTPUT_LIMIT)

    def start(self) -> None:
        """Sends the spec."""
        self.primary, self.started = self.machine.start(self.spec, Stdio(stdout=self.out, stderr=self.err))

    def wait(self) -> Output:
        """The end of the primary process."""
        assert self.primary is not None
        code = self.primary.wait(WAIT_S)
        return Output(code, text(self.out), text(self.err))

    def exec(self, *args: str, **process: object) -> Output:
        """Runs a program to its end."""
        out, err = Collector(OUTPUT_LIMIT), Collector(OUTPUT_LIMIT)
        wanted = self.process(*args, **process)
        stdio = Stdio(stdout=out, stderr=None if wanted.terminal else err)  # a terminal has one output
        session, _ = self.machine.exec(wanted, stdio)
        code = session.wait(WAIT_S)
        return Output(code, text(out), text(err))

    def sh(self, script: str, **process: object) -> Output:
        """Runs a shell script."""
        return self.exec("sh", "-c", script, **process)

    def resident_kib(self) -> int:
        """Memory of PID 1."""
        return next(int(line.split()[1]) for line in self.sh("cat /proc/1/status").out.splitlines()
                    if line.startswith("VmRSS:"))

    def growth_kib(self, work: Callable[[], object], rounds: int) -> int:
        """By how much the memory of PID 1 grows while `work` is done once: the least of some rounds.

        What leaks grows in every round.  What grows in some is the allocator's: how many messages wait for the host at
        a time is a matter of its load.
        """
        sizes = []
        for _ in range(rounds + 1):
            work()
            sizes.append(self.resident_kib())
        return min(after - before for before, after in pairwise(sizes))

    @staticmethod
    def process(*args: str, **others: object) -> Process:
        """A Process of text arguments."""
        plain = Process(args=tuple(os.fsencode(arg) for arg in args))
        return plain.but(**others)

    def until_says(self, words: str, seconds: float = WAIT_S) -> None:
        """Waits for something in the output of the primary process."""
        deadline = time.monotonic() + seconds
        while words not in text(self.out):
            assert time.monotonic() < deadline, f"{words!r} has not come, only {text(self.out)!r}"
            time.sleep(0.05)

    def until(self, script: str, wanted: str, seconds: float = WAIT_S) -> None:
        """Runs a script again and again until it says what is wanted."""
        deadline = time.monotonic() + seconds
        while (said := self.sh(script).out.strip()) != wanted:
            assert time.monotonic() < deadline, f"{script}: {said!r} instead of {wanted!r}"
            time.sleep(0.2)


def text(collector: Collector) -> str:
    """What was collected."""
    return bytes(collector.content).decode("utf-8", "surrogateescape")


@contextmanager
def container(
    *words: str,
    change: dict[str, object] | None = None,
    start: bool = True,
    more_disks: Mapping[str, Path] | None = None,
    more_drives: Sequence[Drive] = (),
    devices: tuple[str, ...] = (),
    device_fds: tuple[int, ...] = (),
    hardware: Mapping[str, Any] | None = None,
) -> Iterator[Container]:
    """Boots `vch run WORDS` up to its primary process.

    `change` replaces fields of the spec; `more_disks` are read-only VMDKs by serial number, for programs to find,
    `more_drives` disks of any kind, `devices` more words for QEMU that may speak of the descriptors `device_fds`.
    `hardware` replaces fields of the machine.
    """
    options = parse_run(words, os.environ)
    configured = settings.load(os.environ)
    with ExitStack() as held:
        prepared = prepare(options, configured, lambda line: None)
        disks = DiskSet(configured.home)
        held.callback(disks.close)
        if prepared.disk is not None:
            disks.add_image(IMAGE_SERIAL, prepared.disk)
        disks.add_unnamed(TOP_SERIAL, 64 * MIB)
        for index, _ in enumerate(volume_mounts(options, prepared.run)):
            disks.add_unnamed(VOLUME_SERIAL.format(index), 16 * MIB)
        for serial, descriptor in (more_disks or {}).items():
            disks.add_image(serial, descriptor)
        config = MachineConfig(
            name="test", accelerator=prepared.verdict.accelerator, memory_mib=_memory(options), cpus=1,
            boot=prepared.boot, drives=(*disks.drives, *more_drives), fd_sets=disks.fd_sets,
            network=UserNetwork(MAC, ()) if options.network == "user" else None,
            devices=devices, device_fds=device_fds,
        )
        config = config._replace(**(hardware or {}))
        cloning = Cloning(Store(configured.templates)) if configured.templates is not None else None
        machine = held.enter_context(Machine(config, prepared.program, cloning=cloning))
        placement = Placement(id="0123456789abcdef" * 4, mac=MAC, layers=prepared.layers, verity=prepared.verity)
        spec = build_spec(options, prepared.run, placement, Identity(entropy=b"", clock_ns=0))
        held.callback(prepared.lease.release)
        made = Container(machine, spec.but(**(change or {})))
        if start:
            made.start()
        yield made


def _memory(options: RunOptions) -> int:
    return (options.memory or MEMORY_MIB * MIB) // MIB
