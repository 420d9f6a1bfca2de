"""The user's descriptors and streams of a real link, in one loop: nothing lost, nothing blocked, nothing changed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pty
import socket
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.link_pair import Pair
from tether.link.events import Readable, Stopped, Writable
from tether.link.hello import APPLIANCE
from tether.link.reactor import Reactor
from vch.machine.pumps import InputPump, OutputPump
from vch.machine.sinks import Collector, SinkClosedError, open_sink

NUMBER = 17
BIG = hashlib.shake_128(b"pumps").digest(3_000_000)


class Loop:
    """A connected pair and a reactor, turned together."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.pair = Pair()
        self.pair.connect()
        self.ours = self.pair.appliance.stream(NUMBER)
        self.theirs = self.pair.tether.stream(NUMBER)
        self.pumps: list[InputPump | OutputPump] = []

    def turn(self, until: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, "it takes too long"
            self.reactor.run_once(0.01)
            seen = len(self.pair.seen[APPLIANCE])
            self.pair.settle()
            for event in self.pair.seen[APPLIANCE][seen:]:
                if isinstance(event, (Readable, Writable, Stopped)) and event.stream == NUMBER:
                    for pump in self.pumps:
                        pump.resume()

    def output(self, target: int) -> list[Exception | None]:
        ends: list[Exception | None] = []
        self.pumps.append(OutputPump(self.reactor, self.ours, open_sink(target), ends.append))
        return ends


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.reactor.close()


def fill(loop: Loop, data: bytes) -> Callable[[], None]:
    """Writes all of `data` to the stream's other end, as room comes; call it in every turn."""
    left = [data]

    def more() -> None:
        left[0] = left[0][loop.theirs.write(left[0]) :] if left[0] else b""
        if not left[0]:
            loop.theirs.finish()

    return more


def test_input_from_a_pipe_arrives_whole_and_ends(loop: Loop) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    loop.pumps.append(InputPump(loop.reactor, reader, loop.ours))
    got, left = bytearray(), BIG

    def done() -> bool:
        nonlocal left
        if left:
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(writer, left) :]
            if not left:
                os.close(writer)
        got.extend(loop.theirs.read(1 << 20))
        return loop.theirs.ended

    loop.turn(done)
    assert bytes(got) == BIG
    os.close(reader)


def test_input_from_a_file(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(BIG)
    got = bytearray()
    with path.open("rb") as file:
        loop.pumps.append(InputPump(loop.reactor, file.fileno(), loop.ours))

        def done() -> bool:
            got.extend(loop.theirs.read(1 << 20))
            return loop.theirs.ended

        loop.turn(done)
    assert bytes(got) == BIG


@pytest.mark.parametrize("source", ["closed", "/dev/null", "/"])
def test_input_that_is_none(loop: Loop, source: str) -> None:
    fd = os.open("/dev/null" if source == "closed" else source, os.O_RDONLY)
    if source == "closed":
        os.close(fd)
    loop.pumps.append(InputPump(loop.reactor, fd, loop.ours))
    loop.turn(lambda: loop.theirs.ended)


def test_a_full_stream_stops_the_reading(loop: Loop) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    loop.pumps.append(InputPump(loop.reactor, reader, loop.ours))
    for _ in range(200):  # nobody reads at the other end
        with contextlib.suppress(BlockingIOError):
            os.write(writer, bytes(65536))
        loop.reactor.run_once(0)
        loop.pair.settle()
    with contextlib.suppress(BlockingIOError):
        while True:  # until the pipe is full, which it only becomes if it is not read
            os.write(writer, bytes(4096))
    os.close(writer)  # a hung-up pipe that is not read must not turn the loop into a busy one
    began, turns = time.monotonic(), 0
    while time.monotonic() - began < 0.3:
        loop.reactor.run_once(0.1)
        turns += 1
    assert turns < 10
    os.close(reader)


def test_input_stops_when_the_container_wants_no_more(loop: Loop) -> None:
    reader, writer = os.pipe()
    loop.pumps.append(InputPump(loop.reactor, reader, loop.ours))
    os.write(writer, b"for the container\n")
    loop.turn(lambda: loop.theirs.buffered > 0)
    loop.theirs.stop()
    loop.turn(lambda: loop.pumps[0].done)
    os.write(writer, b"for the next program\n")
    loop.reactor.run_once(0)
    assert os.read(reader, 100) == b"for the next program\n"


def test_output_to_a_slow_pipe_is_whole(loop: Loop) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    ends, got, more = loop.output(writer), bytearray(), fill(loop, BIG)

    def done() -> bool:
        more()
        with contextlib.suppress(BlockingIOError):
            got.extend(os.read(reader, 9000))
        return bool(ends)

    loop.turn(done)
    os.close(writer)
    while piece := os.read(reader, 1 << 16):
        got += piece
    assert ends == [None]
    assert bytes(got) == BIG


def test_the_users_descriptors_stay_blocking() -> None:
    reader, writer = os.pipe()
    sink = open_sink(writer)
    assert os.get_blocking(writer)
    with contextlib.suppress(BlockingIOError):
        while True:
            sink.write(memoryview(bytes(65536)))
    sink.close()
    assert os.get_blocking(writer)
    os.fstat(writer)
    os.close(reader)
    os.close(writer)


def test_output_to_a_file_keeps_its_offset_and_append(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before\n")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    ends, more = loop.output(fd), fill(loop, b"after\n")
    loop.turn(lambda: more() or bool(ends))
    assert path.read_bytes() == b"before\nafter\n"
    os.close(fd)


def test_output_to_a_socket(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    ends, got, more = loop.output(ours.fileno()), bytearray(), fill(loop, BIG)

    def done() -> bool:
        more()
        with contextlib.suppress(BlockingIOError):
            got.extend(theirs.recv(100_000))
        return bool(ends) and len(got) == len(BIG)

    loop.turn(done)
    assert bytes(got) == BIG
    assert ours.getblocking()


def test_output_to_a_terminal(loop: Loop) -> None:
    master, slave = pty.openpty()
    settings = termios.tcgetattr(slave)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(slave, termios.TCSANOW, settings)
    os.set_blocking(master, False)
    data = BIG[:200_000]
    ends, got, more = loop.output(slave), bytearray(), fill(loop, data)

    def done() -> bool:
        more()
        with contextlib.suppress(BlockingIOError):
            got.extend(os.read(master, 4096))
        return bool(ends) and len(got) == len(data)

    loop.turn(done)
    assert bytes(got) == data
    assert fcntl.fcntl(slave, fcntl.F_GETFL) & os.O_NONBLOCK == 0


def test_a_reader_that_goes_away_is_told_to_the_container(loop: Loop) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ends = loop.output(writer)
    loop.theirs.write(b"x")
    loop.turn(lambda: bool(ends))
    assert isinstance(ends[0], SinkClosedError)
    loop.turn(lambda: loop.theirs.stopped)


def test_a_full_disk_is_an_error_of_its_own(loop: Loop) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    ends = loop.output(fd)
    loop.theirs.write(b"x")
    loop.turn(lambda: bool(ends))
    assert isinstance(ends[0], OSError)
    assert ends[0].strerror == "No space left on device"


def test_what_has_arrived_is_written_when_the_machine_is_gone(loop: Loop) -> None:
    reader, writer = os.pipe()
    ends = loop.output(writer)
    loop.theirs.write(b"last words")
    loop.pair.settle()
    loop.pair.disconnect()
    pump = loop.pumps[0]
    assert isinstance(pump, OutputPump)
    pump.finish()
    assert (ends, os.read(reader, 100)) == ([None], b"last words")


def test_closed_descriptors_and_collectors() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(SinkClosedError):
        open_sink(writer)
    os.close(reader)
    collector = Collector(5)
    assert collector.write(memoryview(b"abc")) == 3
    assert collector.write(memoryview(b"defg")) == 4
    assert (bytes(collector.content), collector.truncated) == (b"abcde", True)
