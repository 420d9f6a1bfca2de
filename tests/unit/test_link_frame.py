"""The decoder finds whole frames in whatever comes, and nothing else."""

import os
import time
from itertools import pairwise
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.link.errors import ProtocolError
from tether.link.frame import ACK, DATA, HEADER_SIZE, HELLO, MARK, TRAILER_SIZE, Decoder, build

KEY = 0x12345678
LIMIT = 4096
Plain = tuple[int, int, int, int, bytes]


def frame(payload: bytes = b"", *, kind: int = DATA, key: int = KEY, stream: int = 16, offset: int = 0) -> bytes:
    return b"".join(build(kind, key, stream=stream, offset=offset, parts=[payload] if payload else None))


def decoder(limit: int = LIMIT) -> Decoder:
    one = Decoder(limit)
    one.reset(KEY)
    return one


def feed(one: Decoder, data: bytes) -> list[Plain]:
    found: list[Plain] = []
    rest = memoryview(data)
    while rest:
        rest = memoryview(one.feed(rest))
        while (got := one.next()) is not None:
            kind, flags, stream, offset, payload = got
            found.append((kind, flags, stream, offset, bytes(payload)))
    return found


def chop(data: bytes, cuts: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(marks)]


def test_layout() -> None:
    """Written out by hand, so that a change of the layout is deliberate."""
    fields = b"\xf7TL\xfe" + bytes([1, 4, 0, 1, 0, 0, 0, 5, 0, 0, 0, 17]) + (258).to_bytes(8, "big")
    check = crc32(fields, KEY)
    expected = fields + check.to_bytes(4, "big") + b"hello" + crc32(b"hello", check).to_bytes(4, "big")
    assert b"".join(build(DATA, KEY, flags=1, stream=17, offset=258, parts=[b"he", memoryview(b"llo")])) == expected
    assert HEADER_SIZE == 28
    assert TRAILER_SIZE == 4


@given(st.lists(st.binary(max_size=300), max_size=12), st.lists(st.integers(0, 5000), max_size=10))
def test_any_cut_of_the_bytes_gives_the_same_frames(payloads: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frame(payload, offset=index) for index, payload in enumerate(payloads))
    one = decoder()
    found = [got for piece in chop(data, cuts) for got in feed(one, piece)]
    assert [(got[3], got[4]) for got in found] == list(enumerate(payloads))
    assert one.noise == one.damaged == 0
    assert not one.partial


@given(
    st.lists(st.tuples(st.binary(max_size=80), st.binary(max_size=80)), max_size=8),
    st.lists(st.integers(0, 3000), max_size=8),
)
def test_noise_between_frames_is_skipped(pairs: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    data = b"".join(noise + frame(payload, offset=index) for index, (noise, payload) in enumerate(pairs))
    one = decoder()
    found = [got for piece in chop(data, cuts) for got in feed(one, piece)]
    assert [(got[3], got[4]) for got in found] == [(index, payload) for index, (_, payload) in enumerate(pairs)]
    assert one.noise == sum(len(noise) for noise, _ in pairs)


@given(st.integers(0, HEADER_SIZE + 40 + TRAILER_SIZE - 1), st.integers(1, 255))
def test_a_damaged_byte_costs_that_frame_only(at: int, damage: int) -> None:
    broken = bytearray(frame(b"x" * 40))
    broken[at] ^= damage
    one = decoder()
    found = feed(one, frame(b"before", offset=1) + bytes(broken) + frame(b"after", offset=2))
    assert [got[4] for got in found] == [b"before", b"after"]


@given(st.integers(1, HEADER_SIZE + 40 + TRAILER_SIZE - 1))
def test_a_torn_frame_costs_that_frame_only(length: int) -> None:
    torn = frame(b"x" * 40)[:length]
    one = decoder()
    found = feed(one, torn + frame(b"after", offset=1) + frame(b"more" * 20, offset=2))
    assert [got[4] for got in found] == [b"after", b"more" * 20]


def test_a_torn_frame_is_given_up_when_nothing_follows() -> None:
    one = decoder()
    assert feed(one, frame(b"x" * 4000)[:100] + frame(b"after")) == []
    assert one.partial
    assert not one.tick()
    assert one.tick()
    assert (got := one.next()) is not None
    assert bytes(got[4]) == b"after"


def test_a_length_that_is_noise_is_not_waited_for() -> None:
    header = bytearray(frame(b"abc"))
    header[8:12] = (1 << 31).to_bytes(4, "big")
    assert [got[4] for got in feed(decoder(), bytes(header) + frame(b"next"))] == [b"next"]


def test_a_frame_beyond_the_limit_is_an_error_and_is_not_waited_for() -> None:
    one = decoder()
    with pytest.raises(ProtocolError, match="4097 bytes"):
        feed(one, frame(b"x" * (LIMIT + 1)))


def test_frames_with_another_key_are_noise() -> None:
    """A frame of an earlier connection, or one that somebody wrote into a payload."""
    one = decoder()
    inner = frame(b"forged", key=0)
    torn = frame(b"y" * 200 + inner)[:-1] + b"?"
    assert [got[4] for got in feed(one, frame(b"old", key=KEY + 1) + torn + frame(b"good"))] == [b"good"]
    assert one.damaged == 1


@given(st.integers(1, 8000), st.integers(0, 12000), st.integers(1, 4000), st.sampled_from([b"\0", b"ab", b"x" * 64]))
def test_where_the_ends_suffice_every_loss_is_seen(size: int, at: int, lost: int, motif: bytes) -> None:
    """Also with data that looks the same wherever one cuts it."""
    payloads = [(motif * 8000)[:size], b"second" * 300, b"third"]
    frames = [
        b"".join(build(DATA, KEY, stream=17, offset=index, parts=[memoryview(payload)[:9], payload[9:]], ends=True))
        for index, payload in enumerate(payloads)
    ]
    data = b"".join(frames)
    at %= len(data)
    one = Decoder(10_000, ends=True)
    one.reset(KEY)
    found = feed(one, data[:at] + data[at + lost :])
    for _ in range(2):
        one.tick()
    while (got := one.next()) is not None:
        found.append((*got[:4], bytes(got[4])))
    for _kind, _flags, _stream, offset, payload in found:
        assert payload == payloads[offset]
    for index, frame in enumerate(frames):
        begin = sum(map(len, frames[:index]))
        if begin + len(frame) <= at or begin >= at + lost:
            assert index in {got[3] for got in found}


def test_opening_frames_need_no_key() -> None:
    assert [got[0] for got in feed(decoder(), frame(b"hi", kind=HELLO, key=0))] == [HELLO]
    assert feed(decoder(), frame(b"hi", kind=HELLO)) == []
    assert feed(decoder(), frame(b"hi", kind=ACK, key=0)) == []


def test_console_lines_do_not_disturb() -> None:
    console = "[    1.234567] Kernel panic — not syncing: ☃\r\n".encode() * 3
    one = decoder()
    data = console + frame(b"one") + console + frame(b"two", offset=3) + console
    assert [got[4] for got in feed(one, data)] == [b"one", b"two"]
    assert one.noise >= 3 * len(console) - len(MARK)


@pytest.mark.parametrize("hostile", [MARK, MARK + bytes(24), bytes(28), b"\xf7", MARK[:3], frame(key=1)])
def test_a_megabyte_of_nonsense_takes_linear_time(hostile: bytes) -> None:
    one = decoder()
    data = hostile * ((1 << 20) // len(hostile))
    start = time.process_time()
    assert feed(one, data) == []
    assert time.process_time() - start < 3
    assert feed(one, frame(b"still here")) != []


def test_memory_is_small_until_it_must_not_be_and_bounded_then() -> None:
    one = decoder(1 << 20)
    for _ in range(50):
        feed(one, frame(b"x" * 4000) + os.urandom(10_000))
        assert 0 < len(one.space()) <= 16384
    assert feed(one, frame(b"y" * (1 << 20)))[0][4] == b"y" * (1 << 20)
    for _ in range(50):
        feed(one, os.urandom(100_000))
        assert 0 < len(one.space()) <= 2 * (1 << 20) + 100


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_any_bytes_never_raise_anything_else(data: bytes, cuts: list[int]) -> None:
    one = decoder()
    for piece in chop(data, cuts):
        assert feed(one, piece) == []
