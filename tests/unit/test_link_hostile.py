"""A peer that means harm: whatever it sends costs bounded memory and time, and is at most one typed error."""

import os
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tether.link import cbor
from tether.link.endpoint import LIVE, Endpoint
from tether.link.errors import ProtocolError
from tether.link.frame import ACK, BYE, CLOSED, DATA, FIN, HELLO, NAK, RESUME, build
from tether.link.hello import APPLIANCE, TETHER, Hello, hello_of, pack, read_hello
from tether.link.limits import Limits

LIMITS = Limits(payload=256, window=1024, ring=1024, streams=4, message=512)
KINDS = (DATA, DATA, DATA, ACK, NAK, CLOSED, RESUME, HELLO, BYE, 99)
OFFSETS = st.sampled_from([0, 1, 5, 100, 255, 256, 1000, 1024, 1025, 1 << 20, (1 << 64) - 1])
STREAMS = st.sampled_from([0, 1, 16, 17, 18, 19, 20, 21, 22, 1 << 31, (1 << 32) - 1])
ACK_PAYLOADS = st.tuples(OFFSETS, OFFSETS).map(lambda pair: b"".join(one.to_bytes(8, "big") for one in pair))
PAYLOADS = st.binary(max_size=256) | ACK_PAYLOADS | st.just(b"\0\0\0\5\x84\0\1\x64Ping\xa0")
FLAGS = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 17, 18, 19, 0xFFFF])
FRAMES = st.tuples(st.sampled_from(KINDS), FLAGS, STREAMS, OFFSETS, PAYLOADS)


class Victim:
    """A real endpoint, live, whose peer is the test."""

    def __init__(self, role: str, limits: Limits = LIMITS) -> None:
        self.role, self.limits = role, limits
        self.endpoint = Endpoint(role, limits)
        self.connect()

    def connect(self) -> None:
        """Goes through the opening as an honest peer would."""
        victim = self.endpoint
        victim.connected()
        theirs = self.opening()
        mine = hello_of(
            TETHER if self.role == APPLIANCE else APPLIANCE,
            self.limits,
            instance=b"i" * 16,
            connection=os.urandom(8),
            durable=False,
            software="hostile",
        )
        self.key = theirs.key
        victim.receive(b"".join(build(HELLO, 0, parts=[pack(mine)])))
        resume = {"connection": mine.connection, "echo": theirs.connection, "known": False}
        victim.receive(b"".join(build(RESUME, 0, parts=[cbor.dumps(resume)])))
        assert victim.phase == LIVE

    def opening(self) -> Hello:
        data = self.endpoint.transmit()
        length = int.from_bytes(data[8:12], "big")
        return read_hello(memoryview(data)[28 : 28 + length])

    def send(self, kind: int, flags: int, stream: int, offset: int, payload: bytes) -> None:
        """One frame with right checksums."""
        key = 0 if kind in (HELLO, RESUME) else self.key
        parts: list[bytes | memoryview] | None = [payload] if payload else None
        self.endpoint.receive(b"".join(build(kind, key, flags=flags, stream=stream, offset=offset, parts=parts)))

    def held(self) -> int:
        """Bytes held for the peer."""
        mux = self.endpoint.mux
        return sum(one.buffered for one in mux.receivers.values())


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([APPLIANCE, TETHER]), st.lists(FRAMES, max_size=60))
def test_any_frames_are_one_typed_error_at_most(role: str, frames: list[tuple[int, int, int, int, bytes]]) -> None:
    victim = Victim(role)
    victim.endpoint.stream(17).write(b"x" * 500)
    victim.endpoint.stream(18).write(b"y")
    victim.endpoint.stream(18).finish()
    victim.endpoint.transmit()
    for frame in frames:
        try:
            victim.send(*frame)
        except ProtocolError:
            victim.endpoint.disconnected()
            victim.endpoint.events()
            victim.connect()
        assert victim.held() <= (LIMITS.streams + 1) * LIMITS.window + LIMITS.control_window
        assert len(victim.endpoint.mux.receivers) <= 2 * LIMITS.streams + 2
        assert len(victim.endpoint.transmit()) <= 8192
        assert len(victim.endpoint.events()) <= 8


def _opened_without_end() -> Iterator[tuple[int, int, int, int, bytes]]:
    for number in range(1, 10**6):
        yield DATA, 16, number, 0, b"x"


def _ended_and_never_closed() -> Iterator[tuple[int, int, int, int, bytes]]:
    for number in range(1, 10**6):
        yield DATA, FIN | 16, number, 0, b""


def _one_stream_without_pause() -> Iterator[tuple[int, int, int, int, bytes]]:
    for offset in range(0, 10**9, 256):
        yield DATA, 16, 17, offset, b"x" * 256


def _bytes_one_by_one() -> Iterator[tuple[int, int, int, int, bytes]]:
    for offset in range(10**6):
        yield DATA, 16, 17, offset, b"x"


def _acknowledgements_of_nothing() -> Iterator[tuple[int, int, int, int, bytes]]:
    for number in range(1, 10**6):
        yield ACK, 0, number, 0, bytes(16)


def _complaints() -> Iterator[tuple[int, int, int, int, bytes]]:
    for number in range(1, 10**6):
        yield NAK, 0, number, 0, b""


def _gaps() -> Iterator[tuple[int, int, int, int, bytes]]:
    for number in range(10**6):
        yield DATA, 16, 17, 1 + number % 2, b"x"


def _a_message_that_never_ends() -> Iterator[tuple[int, int, int, int, bytes]]:
    yield DATA, 0, 0, 0, (500).to_bytes(4, "big")
    for offset in range(4, 10**9):
        yield DATA, 0, 0, offset, b"x"


def _requests_without_reading() -> Iterator[tuple[int, int, int, int, bytes]]:
    message = cbor.dumps([0, 1, "Nonsense", {}])
    framed = len(message).to_bytes(4, "big") + message
    for number in range(10**6):
        yield DATA, 0, 0, number * len(framed), framed


ATTACKS = [
    _opened_without_end,
    _ended_and_never_closed,
    _one_stream_without_pause,
    _bytes_one_by_one,
    _acknowledgements_of_nothing,
    _complaints,
    _gaps,
    _a_message_that_never_ends,
    _requests_without_reading,
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("reads", [True, False], ids=["reading", "not reading"])
def test_attacks_cost_bounded_memory_and_time(attack: object, reads: bool) -> None:
    assert callable(attack)
    victim = Victim(TETHER)
    tracemalloc.start()
    before, start, sent = tracemalloc.get_traced_memory()[0], time.process_time(), 0
    try:
        for frame in attack():
            victim.send(*frame)
            if reads:
                victim.endpoint.transmit()
            victim.endpoint.events()
            sent += 1
            if sent == 3000:
                break
    except ProtocolError:
        sent = max(sent, 1)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 500_000
    assert (time.process_time() - start) / max(sent, 100) < 0.005
    victim.endpoint.disconnected()
    victim.connect()


def test_a_hello_with_limits_of_nothing_is_refused() -> None:
    victim = Endpoint(APPLIANCE, LIMITS)
    numbers = {"payload": 0}, {"window": 0}, {"streams": 0}, {"message": 0}, {"payload": 1 << 40}, {"flight": -1}
    for changes in (*numbers, {"role": "cat"}):
        victim.connected()
        hello = hello_of(TETHER, LIMITS, instance=b"i" * 16, connection=b"c" * 8, durable=False, software="")
        with pytest.raises(ProtocolError):
            victim.receive(b"".join(build(HELLO, 0, parts=[pack(hello.but(**changes))])))
        victim.disconnected()


@pytest.mark.parametrize(
    "changes",
    [
        {"send": [[5, 0, 0, 1]] * 2},
        {"send": [[5, 0, 9, 1]]},
        {"send": [[5, 0, 0]]},
        {"send": [[1 << 32, 0, 0, 0]]},
        {"send": [[5, -1, 0, 0]]},
        {"receive": [[5, 0, 1, 2, 3, 0]]},
        {"receive": [[5, 0, 1, 1, 0, 0]]},
        {"receive": [[5, 0, 1 << 63, 1, 1 << 63, 0]]},
        {"send": [[number, 0, 0, 0] for number in range(2000)]},
        {"more": 1},
    ],
)
def test_positions_that_cannot_be_are_refused(changes: dict[str, object]) -> None:
    victim = Victim(APPLIANCE)
    victim.endpoint.disconnected()
    victim.endpoint.connected()
    victim.opening()
    resume = {"connection": b"c" * 8, "echo": b"e" * 8, "known": False, **changes}
    with pytest.raises(ProtocolError):
        victim.send(RESUME, 0, 0, 0, cbor.dumps(resume))


def test_after_the_error_an_honest_peer_is_served() -> None:
    victim = Victim(TETHER)
    with pytest.raises(ProtocolError):
        victim.send(DATA, 0, 0, 0, b"\xff\xff\xff\xff")
    victim.endpoint.disconnected()
    victim.connect()
    message = cbor.dumps([0, 7, "Ping", {}])
    victim.send(DATA, 0, 0, 0, len(message).to_bytes(4, "big") + message)
    assert "Requested(id=7" in repr(victim.endpoint.events())
