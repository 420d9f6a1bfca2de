"""What the serial port endpoint makes of bytes, and of a VM's moves: no sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.esx_host import SERVICE, UUID
from vch.vspc.port import Port
from vch.vspc.session import Received, Session
from vch.vspc.telnet import Data, Negotiation, Parser, Subnegotiation, VspcError, escape, subnegotiation

ANYTHING = st.binary(max_size=300) | st.lists(st.sampled_from([255, 240, 250, 251, 232, 0, 65]), max_size=60).map(bytes)


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """`data` in pieces of these sizes, then the rest."""
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


class TestTelnet:
    @given(ANYTHING, st.lists(st.integers(1, 9), max_size=40))
    def test_data_comes_back_however_it_is_cut(self, data: bytes, sizes: list[int]) -> None:
        parser, got = Parser(), b""
        for piece in cut(escape(data), sizes):
            for item in parser.receive(piece):
                assert isinstance(item, Data)
                got += item.data
        assert got == data

    @given(ANYTHING, st.lists(st.integers(1, 3), max_size=40))
    def test_subnegotiations_too_and_what_is_around_them(self, payload: bytes, sizes: list[int]) -> None:
        parser = Parser()
        whole = b"a\xff\xff" + subnegotiation(232, payload) + b"\xff\xf1\xff\xfd\x00b"
        items = [item for piece in cut(whole, sizes) for item in parser.receive(piece)]
        data = b"".join(item.data for item in items if isinstance(item, Data))
        assert data == b"a\xffb"
        assert [item for item in items if not isinstance(item, Data)] == [
            Subnegotiation(232, payload),
            Negotiation(253, 0),
        ]

    @given(st.lists(ANYTHING, max_size=20))
    def test_noise_raises_one_kind_of_error_and_keeps_little(self, pieces: list[bytes]) -> None:
        session = Session(SERVICE)
        try:
            for piece in pieces:
                for event in session.receive(piece):
                    assert event
        except VspcError:
            return
        assert session.queued < 10_000

    def test_an_endless_subnegotiation_is_an_error(self) -> None:
        parser = Parser()
        with pytest.raises(VspcError, match="more than 4096"):
            list(parser.receive(b"\xff\xfa\xe8" + bytes(5000)))


class TestSession:
    def test_answers_what_changes_something_and_nothing_else(self) -> None:
        session = Session(SERVICE)
        session.sent(session.queued)
        list(session.receive(b"\xff\xfb\x00\xff\xfd\x00\xff\xfb\x03"))  # agrees to what was offered
        assert session.queued == 0
        list(session.receive(b"\xff\xfb\xe8" * 3 + b"\xff\xfb\x2c" * 3 + b"\xff\xfd\x01" * 3))
        assert session.transmit(99) == b"\xff\xfd\xe8\xff\xfe\x2c\xff\xfc\x01"

    def test_an_unknown_command_is_named(self) -> None:
        session = Session(SERVICE)
        session.sent(session.queued)
        list(session.receive(b"\xff\xfa\xe8\xc8xyz\xff\xf0"))
        assert session.transmit(99) == b"\xff\xfa\xe8\x03\xc8\xff\xf0"

    def test_another_service_is_not_served(self) -> None:
        session = Session(SERVICE)
        session.sent(session.queued)
        list(session.receive(b"\xff\xfa\xe8\x46Selsewhere\xff\xf0\xff\xfa\xe8\x50" + UUID + b"\xff\xf0"))
        assert session.transmit(99) == b"\xff\xfa\xe8\x49\xff\xf0"

    def test_a_host_that_asks_and_does_not_read_is_an_error(self) -> None:
        session = Session(SERVICE)
        with pytest.raises(VspcError, match="does not read"):
            list(session.receive(b"\xff\xfa\xe8\xc8\xff\xf0" * 100_000))

    @given(ANYTHING)
    def test_data_is_escaped_on_the_way_out(self, data: bytes) -> None:
        ours, theirs = Session(SERVICE), Session(SERVICE)
        ours.sent(ours.queued)
        ours.send(data)
        events = list(theirs.receive(ours.transmit(1 << 20)))
        assert b"".join(event.data for event in events if isinstance(event, Received)) == data


def target(port: Port) -> Session | None:
    return port.writable


class TestPort:
    """What hosts may do, in any order that a vMotion can have: no byte of the VM is lost, doubled or out of place."""

    @given(st.data())
    def test_bytes_stay_in_order(self, data: st.DataObject) -> None:
        here = Session(SERVICE)
        port = Port("vm", here, lambda size: b"s" * size)
        said = iter(range(1 << 20))
        got: list[int] = []
        wanted: list[int] = []

        def speak(session: Session) -> None:
            for _ in range(data.draw(st.integers(0, 3))):
                number = next(said)
                wanted.append(number)
                got.extend(port.received(session, bytes([number])))

        for move in range(data.draw(st.integers(1, 4))):
            speak(here)
            port.begin(here, b"%d" % move)
            assert target(port) is None
            speak(here)
            there = Session(SERVICE)
            assert port.is_peer(b"%d" % move + b"s" * 16)
            assert port.peer(there) is None
            speak(here)
            if data.draw(st.booleans(), label="aborted"):
                assert port.abort(here) is there
                assert target(port) is here
                continue
            early = data.draw(st.booleans(), label="old host closes first")
            if early:
                got.extend(port.closed(here))
            got.extend(port.complete(there, b"%d" % move))
            late_words = [] if early else [next(said) for _ in range(data.draw(st.integers(0, 2)))]
            wanted.extend(late_words)
            speak(there)
            if not early:
                got.extend(port.received(here, bytes(late_words)))
                got.extend(port.closed(here))
            here = there
            assert target(port) is here
            assert not port.moving
        assert got == wanted
