"""The link over a 16550 in a real VM: nothing holds a sender back there, and others can write on the line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.link_machine import MIB, WAIT_SECONDS, LinkMachine, link_machine
from vch.machine.session import Stdio
from vch.machine.sinks import Collector
from vch.qemu.config import LinkKind

pytestmark = pytest.mark.vm

LINE = "/line"
BYTES = 24 << 10  # some seconds there and back


@pytest.fixture(scope="module")
def machine(home: Path, demo_layout: Path) -> Iterator[LinkMachine]:
    with link_machine(f"oci:{demo_layout}:demo", LinkKind.UART) as made:
        made.sh(f"mknod {LINE} c 4 65")  # ttyS1, where the link is
        yield made


def echoed(machine: LinkMachine, tmp_path: Path, script: str) -> None:
    """Bytes of all values go to `script` and come back as they are."""
    sent = os.urandom(BYTES)
    (tmp_path / "input").write_bytes(sent)
    out = Collector(MIB)
    fd = os.open(tmp_path / "input", os.O_RDONLY | os.O_CLOEXEC)
    try:
        session, _ = machine.exec("sh", "-c", script, stdio=Stdio(stdin=fd, stdout=out))
        assert session.wait(WAIT_SECONDS) == 0
    finally:
        os.close(fd)
    assert hashlib.sha256(out.content).digest() == hashlib.sha256(sent).digest()


def test_bytes_of_all_values_both_ways(machine: LinkMachine, tmp_path: Path) -> None:
    echoed(machine, tmp_path, "cat")


def test_stray_lines_of_a_console_on_the_same_wire(machine: LinkMachine, tmp_path: Path) -> None:
    driver = machine.machine._driver
    before, _ = driver._endpoint.noise
    stray = f"for i in 1 2 3 4 5 6; do echo 'kernel: something has happened' > {LINE}; usleep 100000; done & cat; wait"
    echoed(machine, tmp_path, stray)
    after, _ = driver._endpoint.noise
    assert after > before
