"""A hundred clones of one template, no two of them alike.

They run an agent that draws from everything there is, as the first thing that it does after it has woken, and tells it
with Ready.  Most end then, so that a hundred of them cost less than a minute of CPU; some become a container.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import pytest

from imagebuild.boot import cpio
from imagebuild.boot.boot_image import build_initramfs, plain_image
from imagebuild.boot.initramfs import init_script
from imagebuild.boot.kernel import choose
from tether.spec import Identity, Interface, Network, Process, Root, Spec
from vch.clone.origin import Cloning
from vch.clone.store import Store
from vch.machine.machine import Machine
from vch.qemu import accel
from vch.qemu.boot_plan import boot_files, find_firmware, kernel_arguments
from vch.qemu.config import TEMPLATE_MAC, Accelerator, MachineConfig, UserNetwork

pytestmark = pytest.mark.vm

ROOT = Path(__file__).resolve().parents[2]
CLONES = int(os.environ.get("VCH_TEST_CLONES", "100"))
CONTAINERS = max(2, CLONES // 10)
AT_ONCE = 2
MEMORY_MIB = 192
CLOCK_SECONDS = 0.05
CORRECTED_SECONDS = 60.0  # a clock that is wrong is corrected after a second; the rest is for hosts that are busy
SAMPLES = 3  # of TCP's initial sequence numbers, and of its time stamps
NS_PER_TICK = 64  # of the sequence numbers (net/core/secure_seq.c)
MS_PER_NS = 10**6
NEAR = 1 << 20  # of 2^32; for a sequence number 67 ms, and from a look at the clock to a connection it takes less

# What the agent does besides; it tells it as names of steps.  The connections have the same addresses and ports in all
# clones: their sequence numbers differ by nothing but the secret that they are made with, and the time.
DRAW = f"""
def draw():
    import _random, fcntl, os, struct, time
    from _socket import socket, AF_INET, SOCK_STREAM, SOL_SOCKET, SO_REUSEADDR
    from tether.kernel import files
    SOL_TCP, TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_TIMESTAMP, SEND_QUEUE = 6, 19, 20, 21, 24, 2
    SIOCSIFFLAGS, IFF_UP = 0x8914, 1
    said = ["getrandom=" + os.getrandom(16).hex()]
    for name in ("uuid", "boot_id"):
        said.append(name + "=" + files.read("/proc/sys/kernel/random/" + name).decode().strip())
    said.append("urandom=" + open("/dev/urandom", "rb", buffering=0).read(16).hex())
    said.append("python=%r" % _random.Random().random())
    server = socket(AF_INET, SOCK_STREAM)
    fcntl.ioctl(server.fileno(), SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
    server.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", 7777))
    server.listen(8)
    for number in range({SAMPLES}):
        client = socket(AF_INET, SOCK_STREAM)
        client.bind(("127.0.0.1", 40000 + number))
        now = time.time_ns()
        client.connect(("127.0.0.1", 7777))
        stamp = client.getsockopt(SOL_TCP, TCP_TIMESTAMP) - time.monotonic_ns() // {MS_PER_NS}
        client.setsockopt(SOL_TCP, TCP_REPAIR, 1)
        client.setsockopt(SOL_TCP, TCP_REPAIR_QUEUE, SEND_QUEUE)
        sequence = client.getsockopt(SOL_TCP, TCP_QUEUE_SEQ) - now // {NS_PER_TICK}
        said.append("sequence%d=%d" % (number, sequence % 2**32))
        said.append("stamp%d=%d" % (number, stamp % 2**32))
        client.close()
    server.close()
    return said

from tether.agent import Agent
hello, start = Agent.say_hello, Agent.start_primary

def say_hello(self):
    for value in draw():
        self.steps.add(value, 0, 0)
    self.steps.add("instance=" + self.endpoint.instance.hex(), 0, 0)
    hello(self)

def start_primary(self, *rest):
    with open("/sys/class/net/eth0/address") as file:
        self.steps.add("mac=" + file.read().strip(), 0, 0)
    start(self, *rest)

Agent.say_hello, Agent.start_primary = say_hello, start_primary
"""


@pytest.fixture
def config(home: Path, tmp_path: Path) -> MachineConfig:
    """A machine whose agent draws."""
    kernel = choose(home)
    image = tmp_path / "image.cpio"  # of two archives in a row, the kernel unpacks the second over the first
    call = "\n    main(BEGAN_NS)"
    changed = init_script(ROOT).replace(call.encode(), (DRAW.replace("\n", "\n    ") + call).encode())
    image.write_bytes(plain_image(build_initramfs(kernel, home)).read_bytes()
                      + cpio.archive([cpio.file("init", changed, 0o755)]))
    boot = boot_files(kernel, image, kernel_arguments(kernel, Accelerator.TCG, 1, debug=False),
                      find_firmware(accel.find_qemu()))
    return MachineConfig("t", Accelerator.TCG, MEMORY_MIB, 1, boot, network=UserNetwork(TEMPLATE_MAC))


@pytest.fixture
def cloning(tmp_path: Path) -> Iterator[Cloning]:
    store = Store(Path(os.environ["VCH_TEMPLATES"]))
    before = {one.facts.key for one in store.list()}
    yield Cloning(store)
    for one in store.list():
        if one.facts.key not in before:
            store.remove(one.facts.key)


def spec_of(mac: str) -> Spec:
    """A container without an image, in which nothing runs."""
    return Spec(id="0" * 64, root=Root(layers=()), process=Process(args=(), idle=True),
                network=Network(hostname="clone", interfaces=(Interface(mac=mac, addresses=("10.0.2.15/24",)),)),
                identity=Identity(entropy=b"", clock_ns=0))


def drawn(config: MachineConfig, cloning: Cloning, number: int) -> dict[str, str]:
    """What one clone has drawn.  The first few become containers, and then have the host's time, too."""
    machine = Machine(config, accel.find_qemu(), cloning=cloning)
    try:
        phases = machine.boot().phases
        assert machine.cloned
        if number < CONTAINERS:
            phases += machine.start(spec_of(f"02:00:00:00:01:{number:02x}"))[1].phases
            until_right(machine)
    finally:
        machine.close()
    return dict(phase.name.split("=", 1) for phase in phases if "=" in phase.name)


def until_right(machine: Machine) -> None:
    """Waits for the clock to be the host's, by as much as can be told from outside."""
    best, deadline = 1e9, time.monotonic() + CORRECTED_SECONDS
    while best >= CLOCK_SECONDS:
        assert time.monotonic() < deadline, f"the clock is wrong by {best} s"
        asked = time.time()
        guest = machine.ping().realtime_ns / 1e9
        best = min(best, max(asked - guest, guest - time.time(), 0.0))


def near(one: int, other: int) -> bool:
    """Whether two numbers of 32 bits are as good as the same."""
    return min((one - other) % 2**32, (other - one) % 2**32) < NEAR


@pytest.mark.timeout(120 + 20 * CLONES)
def test_no_two_of_a_hundred_are_alike(config: MachineConfig, cloning: Cloning) -> None:
    first = drawn(config, cloning, 0)  # makes the template
    with ThreadPoolExecutor(AT_ONCE) as pool:
        all_of_them = [first, *pool.map(lambda number: drawn(config, cloning, number), range(1, CLONES))]
    for name in ("getrandom", "urandom", "uuid", "boot_id", "python", "instance"):
        values = {one[name] for one in all_of_them}
        assert len(values) == CLONES, (name, values)
    assert len({one["mac"] for one in all_of_them[:CONTAINERS]}) == CONTAINERS
    for kind in ("sequence", "stamp"):
        rows = [[int(one[f"{kind}{number}"]) for number in range(SAMPLES)] for one in all_of_them]
        for one, other in combinations(rows, 2):  # some are near each other by chance, but not all that two have
            assert not all(near(*pair) for pair in zip(one, other, strict=True)), (kind, one, other)
