"""The link in a real VM beside its floor: the same kind of port with nothing but a C program at the other end.

There are two floors.  The plain one is a program that has the port to itself.  The relay is what any agent has to do
for a process that knows nothing of ports: the same program behind a pipe, and one in C, as small as cat(1), between
pipe and port.  Floors and link take turns in the same machine where it can have both ports, so that what else the host
does hits all of them.
Wall seconds: what is compared is how long bytes are under way, on both sides of the machine.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from imagebuild.demo import write_demo
from tests.bench.measure import Report
from tests.link_machine import MIB, PROGRAM, RAW_DEVICE, WAIT_SECONDS, LinkMachine, link_machine
from tether.link.messages import Resize, Signal
from vch.machine.session import Stdio
from vch.machine.sinks import Collector
from vch.qemu.config import LinkKind

BLOCK = 64 << 10
# So much takes a few seconds on an emulated machine; a UART carries a thousandth.
PORT_BYTES, UART_OUT_BYTES, UART_IN_BYTES = 64 * MIB, 256 << 10, 48 << 10
ROUND_TRIPS = 300
SPAWNS = 20
BULK_BYTES = 100 * MIB
NO_SIGNAL = 0  # kill(2): checks only that the process is there


class Counter:
    """A sink that counts, and notes when the first and the last byte came."""

    def __init__(self, expected: int) -> None:
        self.fd = -1
        self.count = 0
        self.first = self.last = 0.0
        self._expected = expected
        self.complete = threading.Event()

    def write(self, data: memoryview) -> int:
        now = time.monotonic()
        self.first = self.first or now
        self.last = now
        self.count += len(data)
        if self.count >= self._expected:
            self.complete.set()
        return len(data)

    def close(self) -> None:
        """There is nothing to give back."""


class Echo:
    """A sink that says when a byte has come."""

    def __init__(self) -> None:
        self.fd = -1
        self.came = threading.Semaphore(0)

    def write(self, data: memoryview) -> int:
        self.came.release(len(data))
        return len(data)

    def close(self) -> None:
        """There is nothing to give back."""


def bench_link_vm(home: Path, runs: int, report: Report) -> None:
    """Adds facts and ratios to the report."""
    layout = home / "demo"
    write_demo(layout)
    image = f"oci:{layout}:demo"
    with tempfile.TemporaryDirectory(prefix="vch-bench-") as scratch:
        with link_machine(image, raw=LinkKind.VIRTIO_SERIAL) as machine:
            machine.install_program(Path(scratch))
            _throughput(machine, "virtio-serial", (PORT_BYTES, PORT_BYTES), runs, report)
            _latency(machine, runs, report)
            _control(machine, report)
        _vsock(image, Path(scratch), runs, report)
        _uart(image, Path(scratch), runs, report)


def _throughput(machine: LinkMachine, name: str, sizes: tuple[int, int], runs: int, report: Report) -> None:
    """Both directions, floor and link in turns."""
    out, into = sizes
    rates: dict[str, list[float]] = {}
    for _ in range(runs):
        rates.setdefault("stdout floor", []).append(raw_out(machine, out))
        rates.setdefault("stdout relay", []).append(relay_out(machine, out))
        rates.setdefault("stdout", []).append(link_out(machine, out))
        rates.setdefault("stdin floor", []).append(raw_in(machine, into))
        rates.setdefault("stdin relay", []).append(relay_in(machine, into))
        rates.setdefault("stdin", []).append(link_in(machine, into))
    _tell(name, rates, report)


def _vsock(image: str, scratch: Path, runs: int, report: Report) -> None:
    """To be compared with virtio-serial: a raw vsock port beside the link's would need a second device."""
    with link_machine(image, LinkKind.VSOCK) as machine:
        machine.install_program(scratch)
        rates = {
            "stdout MB/s": [link_out(machine, PORT_BYTES) for _ in range(runs)],
            "stdin MB/s": [link_in(machine, PORT_BYTES) for _ in range(runs)],
            "round trip ms, stdin to stdout of a session": [link_round_trip(machine) for _ in range(runs)],
        }
    for case, taken in rates.items():
        report.facts[f"link-vm: vsock {case}"] = round(statistics.median(taken), 3)


def _uart(image: str, scratch: Path, runs: int, report: Report) -> None:
    """Two machines: ISA serial ports share interrupts two by two, so one machine has no third one that is of use."""
    rates: dict[str, list[float]] = {}
    with link_machine(image, raw=LinkKind.UART) as machine:
        machine.install_program(scratch)
        for _ in range(runs):
            rates.setdefault("stdout floor", []).append(raw_out(machine, UART_OUT_BYTES))
            rates.setdefault("stdout relay", []).append(relay_out(machine, UART_OUT_BYTES))
            rates.setdefault("stdin floor", []).append(raw_in(machine, UART_IN_BYTES))
            rates.setdefault("stdin relay", []).append(relay_in(machine, UART_IN_BYTES))
    with link_machine(image, LinkKind.UART) as machine:
        rates["stdout"] = [uart_out(machine, UART_OUT_BYTES) for _ in range(runs)]
        rates["stdin"] = [uart_in(machine, UART_IN_BYTES) for _ in range(runs)]
    _tell("uart", rates, report)


def _tell(name: str, rates: dict[str, list[float]], report: Report) -> None:
    middle = {case: statistics.median(taken) for case, taken in rates.items()}
    for case, rate in middle.items():
        report.facts[f"link-vm: {name} {case} MB/s"] = round(rate, 3)
    for case in ("stdout", "stdin"):
        for floor in ("floor", "relay"):
            report.ratios[f"link-vm: {name} {case} / {floor}"] = round(middle[case] / middle[f"{case} {floor}"], 3)


# one measurement each, in MB/s


def raw_out(machine: LinkMachine, size: int) -> float:
    """Guest to host on the raw port."""
    return _received(machine, size, PROGRAM, RAW_DEVICE, "source", str(size))


def relay_out(machine: LinkMachine, size: int) -> float:
    """As `raw_out` from behind a pipe."""
    script = f"{PROGRAM} - source {size} | {PROGRAM} {RAW_DEVICE} send {size}"
    return _received(machine, size, "sh", "-c", script)


def _received(machine: LinkMachine, size: int, *args: str) -> float:
    raw = _raw(machine)
    session, _ = machine.exec(*args)
    left, first = size, 0.0
    while left:
        data = raw.recv(min(left, BLOCK))
        assert data, "the raw port has gone"
        if not first:
            first, after = time.monotonic(), left - len(data)
        left -= len(data)
    rate = after / (time.monotonic() - first) / 1e6
    _ended(session.wait(WAIT_SECONDS))
    return rate


def link_out(machine: LinkMachine, size: int) -> float:
    """Guest to host through a session's standard output."""
    return _counted(machine, size, PROGRAM, "-", "source", str(size))


def _counted(machine: LinkMachine, size: int, *args: str) -> float:
    sink = Counter(size)
    session, _ = machine.exec(*args, stdio=Stdio(stdout=sink))
    _ended(session.wait(WAIT_SECONDS))
    assert sink.count == size
    return size / (sink.last - sink.first) / 1e6


def raw_in(machine: LinkMachine, size: int) -> float:
    """Host to guest on the raw port, until the program has it all."""
    raw = _raw(machine)
    session, _ = machine.exec(PROGRAM, RAW_DEVICE, "sink", str(size))
    began = _send(raw, size)
    assert raw.recv(1) == b"d"
    rate = size / (time.monotonic() - began) / 1e6
    _ended(session.wait(WAIT_SECONDS))
    return rate


def relay_in(machine: LinkMachine, size: int) -> float:
    """As `raw_in` to behind a pipe; the end comes over the link, which costs less than a hundredth of it."""
    done = Counter(1)
    script = f"{PROGRAM} {RAW_DEVICE} fetch {size} | {PROGRAM} - sink {size}"
    session, _ = machine.exec("sh", "-c", script, stdio=Stdio(stdout=done))
    began = _send(_raw(machine), size)
    assert done.complete.wait(WAIT_SECONDS), "the program in the guest never had it all"
    rate = size / (done.last - began) / 1e6
    _ended(session.wait(WAIT_SECONDS))
    return rate


def _send(raw: socket.socket, size: int) -> float:
    """Sends to a program that has said that it is ready; when that began."""
    assert raw.recv(1) == b"r"
    block, began = bytes(BLOCK), time.monotonic()
    for at in range(0, size, BLOCK):
        raw.sendall(block[: min(BLOCK, size - at)])
    return began


def link_in(machine: LinkMachine, size: int) -> float:
    """Host to guest through a session's standard input, until the program has it all."""
    return _fed(machine, size, PROGRAM, "-", "sink", str(size))


def _fed(machine: LinkMachine, size: int, *args: str) -> float:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    done = Counter(1)
    session, _ = machine.exec(*args, stdio=Stdio(stdin=reader, stdout=done))
    block, began = bytes(BLOCK), time.monotonic()
    for at in range(0, size, BLOCK):
        rest = memoryview(block)[: min(BLOCK, size - at)]
        while rest:
            rest = rest[os.write(writer, rest) :]
    os.close(writer)
    assert done.complete.wait(WAIT_SECONDS), "the program in the guest never had it all"
    rate = size / (done.last - began) / 1e6
    _ended(session.wait(WAIT_SECONDS))
    os.close(reader)
    return rate


def uart_out(machine: LinkMachine, size: int) -> float:
    """As `link_out` with busybox's dd, where carrying a program into the guest would take longer than the bench."""
    return _counted(machine, size, "dd", "if=/dev/zero", "bs=65536", f"count={size // BLOCK}")


def uart_in(machine: LinkMachine, size: int) -> float:
    """As `link_in`, with busybox's wc."""
    return _fed(machine, size, "wc", "-c")


def _ended(code: int) -> None:
    assert code == 0, f"the program in the guest ended with {code}"


def _raw(machine: LinkMachine) -> socket.socket:
    assert machine.raw is not None
    return machine.raw


# round trips, in milliseconds


def _latency(machine: LinkMachine, runs: int, report: Report) -> None:
    raw, relay, link, ping, execs = [], [], [], [], []
    for _ in range(runs):
        raw.append(raw_round_trip(machine))
        relay.append(relay_round_trip(machine))
        link.append(link_round_trip(machine))
        ping.append(statistics.median(_timed(machine.machine.ping) for _ in range(ROUND_TRIPS // 10)))
        execs.append(statistics.median(_timed(lambda: exec_true(machine)) for _ in range(SPAWNS)))
    spawn = int(machine.sh(f"{PROGRAM} - spawn {SPAWNS * runs}")) / 1e6
    raw_ms, relay_ms, link_ms, exec_ms = map(statistics.median, (raw, relay, link, execs))
    floor = spawn + raw_ms
    report.facts["link-vm: round trip ms, raw port"] = round(raw_ms, 3)
    report.facts["link-vm: round trip ms, relay in C"] = round(relay_ms, 3)
    report.facts["link-vm: round trip ms, stdin to stdout of a session"] = round(link_ms, 3)
    report.facts["link-vm: round trip ms, Ping"] = round(statistics.median(ping), 3)
    report.facts["link-vm: spawn in the guest ms"] = round(spawn, 3)
    report.facts["link-vm: exec true ms"] = round(exec_ms, 3)
    report.ratios["link-vm: round trip of a session / raw port"] = round(link_ms / raw_ms, 2)
    report.ratios["link-vm: round trip of a session / relay in C"] = round(link_ms / relay_ms, 2)
    report.ratios["link-vm: Ping / raw port"] = round(statistics.median(ping) / raw_ms, 2)
    report.ratios["link-vm: exec true / (spawn + round trip)"] = round(exec_ms / floor, 2)


def raw_round_trip(machine: LinkMachine) -> float:
    """One byte there and back on the raw port."""
    return _echoed(machine, "echo")


def relay_round_trip(machine: LinkMachine) -> float:
    """As `raw_round_trip` from behind two pipes."""
    return _echoed(machine, "relay")


def _echoed(machine: LinkMachine, what: str) -> float:
    raw = _raw(machine)
    session, _ = machine.exec(PROGRAM, RAW_DEVICE, what, str(ROUND_TRIPS))
    assert raw.recv(1) == b"r"

    def once() -> None:
        raw.send(b"x")
        assert raw.recv(1)

    taken = statistics.median(_timed(once) for _ in range(ROUND_TRIPS))
    _ended(session.wait(WAIT_SECONDS))
    return taken


def link_round_trip(machine: LinkMachine) -> float:
    """One byte into a session's standard input and out of its standard output."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    echo = Echo()
    session, _ = machine.exec(PROGRAM, "-", "echo", str(ROUND_TRIPS), stdio=Stdio(stdin=reader, stdout=echo))

    def once() -> None:
        os.write(writer, b"x")
        assert echo.came.acquire(timeout=WAIT_SECONDS)

    taken = statistics.median(_timed(once) for _ in range(ROUND_TRIPS))
    _ended(session.wait(WAIT_SECONDS))
    os.close(writer)
    os.close(reader)
    return taken


def exec_true(machine: LinkMachine) -> None:
    """From the request to the exit code."""
    session, _ = machine.exec("/bin/true", stdio=Stdio(stdout=Collector(1)))
    _ended(session.wait(WAIT_SECONDS))


def _control(machine: LinkMachine, report: Report) -> None:
    """Signals and resizes while a session writes as fast as it can."""
    terminal, _ = machine.exec("sleep", "10000", terminal=True)
    sink = Counter(BULK_BYTES)
    bulk, _ = machine.exec(PROGRAM, "-", "source", str(BULK_BYTES), stdio=Stdio(stdout=sink))
    taken: list[float] = []
    while not sink.complete.is_set():
        for message in (
            Signal(session=terminal.number, number=NO_SIGNAL),
            Resize(session=terminal.number, rows=24, columns=80 + len(taken) % 2),
        ):
            began = time.monotonic()
            machine.machine.tell(message).result(WAIT_SECONDS)
            taken.append((time.monotonic() - began) * 1e3)
        time.sleep(0.02)
    _ended(bulk.wait(WAIT_SECONDS))
    terminal.signal(9)
    terminal.wait(WAIT_SECONDS)
    report.facts["link-vm: control round trip under load ms, median"] = round(statistics.median(taken), 1)
    report.facts["link-vm: control round trip under load ms, 95 %"] = round(statistics.quantiles(taken, n=20)[-1], 1)
    report.facts["link-vm: control round trip under load ms, worst"] = round(max(taken), 1)
    report.facts["link-vm: control round trips under load"] = len(taken)


def _timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return (time.monotonic() - began) * 1e3
