"""The link over vsock: `vch run` on a host that may have no vsock of its own, cuts, and a machine that stands still."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagebuild.boot.kernel import choose, module_files
from tests.agents_code import agents_code
from tests.link_machine import LinkMachine, link_machine
from tests.vm.conftest import ROOT, RUN_SECONDS, Vch
from tests.vm.run_helpers import gone, machine_of, until_line
from tests.vm.test_link_soak import Echo, cut
from vch import settings
from vch.qemu.config import LINK_VSOCK_PORT, LinkKind

pytestmark = pytest.mark.vm

MB = 10**6
CUTS = 20


@pytest.fixture(scope="module")
def image(demo_layout: Path) -> str:
    return f"oci:{demo_layout}:demo"


@pytest.fixture(scope="module")
def machine(home: Path, python_image: str) -> Iterator[LinkMachine]:
    with link_machine(python_image, LinkKind.VSOCK) as made:
        yield made


@pytest.fixture
def over_vsock(vch: Vch, monkeypatch: pytest.MonkeyPatch) -> Vch:
    monkeypatch.setenv("VCH_LINK", "vsock")
    return vch


def test_standard_streams_and_the_exit_code(over_vsock: Vch, image: str) -> None:
    data = random.Random(5).randbytes(20 * MB)
    run = over_vsock("run", "-i", image, "sh", "-c", "tr ' ' ' ' | tee /copy; sha256sum /copy >&2; exit 3", stdin=data)
    assert run.returncode == 3, run.stderr
    assert run.stdout == data
    assert run.stderr.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_a_signal_and_the_end_leave_nothing(over_vsock: Vch, image: str) -> None:
    script = "trap 'echo usr1; exit 9' USR1; grep -o tether.link=vsock:2: /proc/cmdline; while :; do sleep 0.1; done"
    process = over_vsock.start("run", image, "sh", "-c", script)
    until_line(process, b"tether.link=vsock:2:\n")
    qemu = machine_of(process)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=RUN_SECONDS)
    assert (process.returncode, out) == (9, b"usr1\n"), err
    assert gone(qemu)


def test_cut_again_and_again(machine: LinkMachine) -> None:
    echo = Echo(machine, 20 * MB)
    for number in range(CUTS):
        echo.reached(echo.size * number // CUTS)
        cut(machine)
    echo.check()


def test_the_machine_stands_still_for_a_while(machine: LinkMachine) -> None:
    """QEMU takes the rings away from the device meanwhile, and gives them back."""
    driver = machine.machine._driver
    echo = Echo(machine, 8 * MB)
    echo.reached(2 * MB)
    driver.post(lambda: driver._tell_qemu("stop"))
    still = echo.back.count
    driver.post(lambda: driver._tell_qemu("cont"))
    echo.check()
    assert echo.back.count > still


def test_a_process_of_the_container_cannot_play_the_agent(machine: LinkMachine) -> None:
    """Not while the agent is connected, and without privileges not even when it is not."""
    script = f"""
import os, socket, time
def tried(port):
    with socket.socket(socket.AF_VSOCK) as near:
        near.settimeout({RUN_SECONDS})
        if port:
            near.bind((socket.VMADDR_CID_ANY, port))
        return near.connect_ex((2, {LINK_VSOCK_PORT}))
print(tried(0), tried(600))
os.setuid(1)
try:
    tried(600)
except PermissionError:
    print("refused")
"""
    said = machine.sh(f"cat > /try.py <<'END'\n{script}\nEND\npython3 /try.py")
    assert said.split() == [str(errno.ECONNRESET), str(errno.ECONNRESET), "refused"]
    assert machine.machine.ping().monotonic_ns


@pytest.fixture(scope="module")
def with_the_agents_code(machine: LinkMachine) -> LinkMachine:
    """The agent as a program of the container, in a kernel that has vsock_loopback, built in or loaded here."""
    with agents_code((ROOT / "tests/vm/vsock_both_ways.py").read_text()) as file:
        machine.sh("cat > /both_ways.zip", stdin=file.fileno())
    configured = settings.load(os.environ)
    needed = module_files(choose(configured.home, configured.kernel), ["vsock_loopback"])
    for path in needed:
        with path.open("rb") as file:
            machine.sh(f"cat > /{path.name}", stdin=file.fileno())
    names = [path.name for path in needed]
    machine.sh(f"PYTHONPATH=/both_ways.zip python3 -c 'from tether.kernel import modules; modules.FOLDER = str(); "
               f"modules._load({str(names).replace(chr(39), chr(34))})'")  # fmt: skip
    return machine


@pytest.mark.parametrize("way", ["connect", "listen"])
def test_the_agents_own_line_by_loopback(with_the_agents_code: LinkMachine, way: str) -> None:
    assert with_the_agents_code.sh(f"python3 /both_ways.zip {way}") == "same True\n"
