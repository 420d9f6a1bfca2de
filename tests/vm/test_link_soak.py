"""The link of a live VM under what happens to links: cut, cut again, the VM paused, the appliance killed with -9.

About a minute on two emulated cores.  VCH_SOAK_PAUSE=60 pauses the VM for a minute instead of seconds, VCH_SOAK_MB
changes how much is moved.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.link_machine import LinkMachine, link_machine, machine_plan
from tests.vm.appliance_process import BLOCK, block
from tether.link import cbor
from tether.link.endpoint import LIVE
from tether.link.messages import Start
from tether.link.record import encode
from tether.spec import Identity
from vch.machine.session import Stdio
from vch.qemu import config as qemu
from vch.qemu.channel import open_channels
from vch.qemu.config import LinkKind
from vch.qemu.process import QemuProcess

pytestmark = pytest.mark.vm

MB = 10**6
CUTS = 200
TWO_WAY = int(os.environ.get("VCH_SOAK_MB", "200")) * MB  # half of it there, half of it back
PAUSE_SECONDS = float(os.environ.get("VCH_SOAK_PAUSE", "5"))
KILLS = 8
TAKEOVER_BYTES = 256 * BLOCK  # 16 MiB each way
SECONDS = 600.0
QUIET_SECONDS = 60.0  # without a byte: something hangs


class Summed:
    """A sink that sums up, counts, and calls back on the way."""

    def __init__(self) -> None:
        self.fd = -1
        self.count = 0
        self.digest = hashlib.sha256()

    def write(self, data: memoryview) -> int:
        self.count += len(data)
        self.digest.update(data)
        return len(data)

    def close(self) -> None:
        """There is nothing to give back."""


class Echo:
    """A `cat` in the container that everything is sent through, and what came back of it."""

    def __init__(self, machine: LinkMachine, size: int) -> None:
        self.size = size
        self.sent = hashlib.sha256()
        self.back = Summed()
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self.session, _ = machine.exec("cat", stdio=Stdio(stdin=self._reader, stdout=self.back))
        self._feeder = threading.Thread(target=self._feed, daemon=True)
        self._feeder.start()

    def _feed(self) -> None:
        left, chance = self.size, random.Random(4)
        while left:
            data = chance.randbytes(min(left, 128 << 10))
            self.sent.update(data)
            left -= len(data)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._writer, rest) :]
        os.close(self._writer)

    def reached(self, count: int) -> None:
        """Waits until so many bytes have come back."""
        seen, deadline = -1, 0.0
        while self.back.count < count:
            if self.back.count != seen:
                seen, deadline = self.back.count, time.monotonic() + QUIET_SECONDS
            assert time.monotonic() < deadline, f"stuck: {seen} of {count} bytes came back"
            time.sleep(0.005)

    def check(self) -> None:
        """Every byte, once, in order."""
        assert self.session.wait(SECONDS) == 0
        self._feeder.join(QUIET_SECONDS)
        os.close(self._reader)
        assert self.back.count == self.size
        assert self.back.digest.digest() == self.sent.digest()


@pytest.fixture(scope="module")
def image(home: Path, demo_layout: Path) -> str:
    """The demo image."""
    return f"oci:{demo_layout}:demo"


@pytest.fixture(scope="module")
def soaked(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinkMachine]:
    """A machine whose link can be cut."""
    with link_machine(image, link_path=tmp_path_factory.mktemp("link") / "port") as machine:
        yield machine


def cut(machine: LinkMachine) -> None:
    """Ends the connection under the link, as soon as there is one, whatever is under way on it."""
    driver, done = machine.machine._driver, threading.Event()

    def shut() -> None:
        transport = driver._wire.transport
        if transport is None or driver._endpoint.phase != LIVE:
            driver.reactor.call_later(0.001, shut)
            return
        with socket.socket(fileno=os.dup(transport.fd)) as end:
            end.shutdown(socket.SHUT_RDWR)
        done.set()

    driver.post(shut)
    assert done.wait(QUIET_SECONDS), "the link does not come back"


@pytest.mark.timeout(int(SECONDS))
def test_cut_again_and_again(soaked: LinkMachine) -> None:
    echo = Echo(soaked, TWO_WAY // 2)
    for number in range(CUTS):
        echo.reached(echo.size * number // CUTS)
        cut(soaked)
    echo.check()
    assert soaked.machine.ping().monotonic_ns


def test_the_machine_stands_still_for_a_while(soaked: LinkMachine) -> None:
    driver = soaked.machine._driver
    echo = Echo(soaked, 8 * MB)
    echo.reached(2 * MB)
    driver.post(lambda: driver._tell_qemu("stop"))
    time.sleep(PAUSE_SECONDS)
    driver.post(lambda: driver._tell_qemu("cont"))
    echo.check()


def test_a_pause_with_the_host_away(soaked: LinkMachine) -> None:
    driver = soaked.machine._driver
    echo = Echo(soaked, 8 * MB)
    echo.reached(2 * MB)
    driver.post(lambda: driver._tell_qemu("stop"))
    cut(soaked)
    time.sleep(PAUSE_SECONDS)
    driver.post(lambda: driver._tell_qemu("cont"))
    echo.check()


@pytest.mark.timeout(int(SECONDS))
def test_the_appliance_is_killed_and_another_process_goes_on(image: str, tmp_path: Path) -> None:
    link = tmp_path / "port"
    with ExitStack() as held:
        plan = held.enter_context(machine_plan(image, LinkKind.VIRTIO_SERIAL, link_path=link, command=("cat",)))
        spec = plan.spec.but(
            identity=Identity(entropy=os.urandom(64), clock_ns=time.time_ns()),
            process=plan.spec.process.but(stdin=True),
        )
        (tmp_path / "start").write_bytes(cbor.dumps(encode(Start(spec=spec))))
        ours, theirs = open_channels()
        held.callback(ours.close)
        held.callback(theirs.close)
        command = qemu.command_line(plan.config, theirs.channels, plan.program)
        machine = QemuProcess(command, qemu.inherited(plan.config, theirs.channels))
        held.callback(machine.close)
        for number in range(1, KILLS + 1):
            appliance = _appliance(link, tmp_path)
            try:
                _grown(tmp_path / "output", TAKEOVER_BYTES * number // (KILLS + 1), appliance)
            finally:
                appliance.send_signal(signal.SIGKILL)
                appliance.wait(QUIET_SECONDS)
        assert _appliance(link, tmp_path).wait(SECONDS) == 0
    output = (tmp_path / "output").read_bytes()
    assert len(output) == TAKEOVER_BYTES
    assert all(output[at : at + BLOCK] == block(at // BLOCK) for at in range(0, TAKEOVER_BYTES, BLOCK))


def _appliance(link: Path, folder: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "tests.vm.appliance_process", str(link), str(folder), str(TAKEOVER_BYTES)]
    return subprocess.Popen(words, cwd=Path(__file__).parents[2])


def _grown(path: Path, size: int, writer: subprocess.Popen[bytes]) -> None:
    """Waits until the file has this size."""
    deadline = time.monotonic() + QUIET_SECONDS * 3
    while not path.exists() or path.stat().st_size < size:
        assert writer.poll() is None, "the appliance has ended by itself"
        assert time.monotonic() < deadline, f"{path.name} does not grow to {size}"
        time.sleep(0.02)
