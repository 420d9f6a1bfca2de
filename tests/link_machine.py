"""A machine for tests and benches of the link: any kind of link, and a raw port beside it on request."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tether.link.messages import Started
from tether.spec import Identity, Process, Spec, Terminal
from vch import settings
from vch.disks import DiskSet
from vch.machine.machine import Machine
from vch.machine.session import Session, Stdio
from vch.machine.sinks import Collector
from vch.options.run_options import parse_run
from vch.options.spec_plan import IMAGE_SERIAL, TOP_SERIAL, Placement, build_spec
from vch.prepare import prepare
from vch.qemu.channel import channel
from vch.qemu.config import LinkKind, MachineConfig

RAW_PORT = "org.vch.raw.0"
MEMORY_MIB = 256
MIB = 1 << 20
WAIT_SECONDS = 120.0  # for one short process on a busy host that emulates
PROGRAM_SOURCE = Path(__file__).parent / "bench/floor_port.c"
PROGRAM = "/floor_port"
RAW_DEVICE = "/raw"

# Busybox has no udev: the node is made from what sysfs says.
_FIND_PORT = f"""
for port in /sys/class/virtio-ports/*; do
    if [ "$(cat $port/name)" = {RAW_PORT} ]; then mknod {RAW_DEVICE} c $(tr : ' ' < $port/dev); fi
done
test -c {RAW_DEVICE}
"""
_FIND_UART = f"mknod {RAW_DEVICE} c 4 65"  # ttyS1, Documentation/admin-guide/devices.txt


class LinkMachine:
    """A running container, and the host's end of its raw port if it has one."""

    def __init__(self, machine: Machine, raw: socket.socket | None) -> None:
        self.machine, self.raw = machine, raw

    def exec(self, *args: str, stdio: Stdio | None = None, terminal: bool = False) -> tuple[Session, Started]:
        """Starts a process."""
        process = Process(args=tuple(map(os.fsencode, args)), stdin=stdio is not None and stdio.stdin is not None)
        if terminal:
            process = process.but(terminal=Terminal())
        return self.machine.exec(process, stdio)

    def sh(self, script: str, stdin: int | None = None) -> str:
        """Runs a shell script to its end; what it printed.  Raises AssertionError if it fails."""
        out, err = Collector(MIB), Collector(MIB)
        session, _ = self.exec("sh", "-c", script, stdio=Stdio(stdin=stdin, stdout=out, stderr=err))
        code = session.wait(WAIT_SECONDS)
        assert code == 0, f"{script}: exit code {code}: {bytes(err.content)!r}"
        return bytes(out.content).decode()

    def install_program(self, scratch: Path) -> None:
        """Compiles floor_port.c and puts it into the container."""
        built = scratch / "floor_port"
        subprocess.run(["gcc", "-static", "-O2", "-s", "-o", built, PROGRAM_SOURCE], check=True, timeout=WAIT_SECONDS)
        fd = os.open(built, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.sh(f"cat > {PROGRAM} && chmod 755 {PROGRAM}", stdin=fd)
        finally:
            os.close(fd)


@dataclass(frozen=True)
class Plan:
    """A machine that could be started, and what it is to run."""

    config: MachineConfig
    program: str
    spec: Spec


@contextmanager
def machine_plan(
    image: str,
    link: LinkKind,
    *,
    link_path: Path | None = None,
    words: tuple[str, ...] = (),
    command: tuple[str, ...] = ("sleep", "1000000"),
) -> Iterator[Plan]:
    """What it takes to run `command` of `image` without a network; what it holds is given back at the end."""
    options = parse_run(["--network", "none", image, *command], os.environ)
    configured = settings.load(os.environ)._replace(link=link)
    with ExitStack() as held:
        prepared = prepare(options, configured, lambda line: None)
        held.callback(prepared.lease.release)
        disks = DiskSet(configured.home)
        held.callback(disks.close)
        assert prepared.disk is not None
        disks.add_image(IMAGE_SERIAL, prepared.disk)
        disks.add_unnamed(TOP_SERIAL, 512 * MIB)
        config = MachineConfig(
            name="link",
            accelerator=prepared.verdict.accelerator,
            memory_mib=MEMORY_MIB,
            cpus=1,
            boot=prepared.boot._replace(arguments=(*prepared.boot.arguments, *words)),
            drives=tuple(disks.drives),
            fd_sets=disks.fd_sets,
            link=link,
            link_path=link_path,
        )
        placement = Placement("0" * 64, "02:00:00:00:00:01", prepared.layers)
        spec = build_spec(options, prepared.run, placement, Identity(entropy=b"", clock_ns=0))
        yield Plan(config, prepared.program, spec)


@contextmanager
def link_machine(
    image: str,
    link: LinkKind = LinkKind.VIRTIO_SERIAL,
    *,
    raw: LinkKind | None = None,
    link_path: Path | None = None,
    words: tuple[str, ...] = (),
) -> Iterator[LinkMachine]:
    """Boots `image` with the command `sleep`.

    raw        a second port of this kind, whose device is /raw in the container
    link_path  QEMU listens there for the link
    words      more for the kernel command line
    """
    with ExitStack() as held:
        plan = held.enter_context(machine_plan(image, link, link_path=link_path, words=words))
        config = plan.config
        near: socket.socket | None = None
        if raw is not None:
            near, far = channel()
            held.callback(near.close)
            held.callback(far.close)
            near.setblocking(True)
            near.settimeout(WAIT_SECONDS)
            config = config._replace(devices=_raw_device(raw, far.fileno()), device_fds=(far.fileno(),))
        machine = held.enter_context(Machine(config, plan.program))
        machine.start(plan.spec)
        made = LinkMachine(machine, near)
        if raw is not None:
            made.sh(_FIND_UART if raw is LinkKind.UART else _FIND_PORT)
        yield made


def _raw_device(kind: LinkKind, fd: int) -> tuple[str, ...]:
    words = ("-chardev", f"socket,id=raw,fd={fd}")
    if kind is LinkKind.UART:
        return (*words, "-serial", "chardev:raw")
    return (*words, "-device", f"virtserialport,bus=ports.0,chardev=raw,name={RAW_PORT}")
