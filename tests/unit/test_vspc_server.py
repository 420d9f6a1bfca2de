"""The serial port endpoint against scripted ESXi hosts (tests/esx_host.py)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import cast

import pytest

from tests.esx_host import SERVICE, UUID_DIGITS, EsxHost, Reader, Site, only, until
from tether.link.reactor import Reactor
from vch.vspc.server import Server


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def moving(site: Site, sequence: bytes) -> tuple[EsxHost, Reader, EsxHost]:
    """A VM on its way: the host that it leaves, its stream, and the host that has announced itself."""
    a = site.host()
    a.open()
    stream = only(site)
    a.command(40, sequence)
    claim = a.expect(41)
    assert claim.startswith(sequence)
    b = site.host()
    b.arrive(claim)
    assert b.expect(45) == sequence
    return a, stream, b


class TestServer:
    def test_bytes_of_every_value_go_both_ways(self, site: Site) -> None:
        host = site.host()
        host.open()
        stream = only(site)
        assert site.names == {UUID_DIGITS: "web-1"}
        every = bytes(range(256)) * 100
        host.serial(every)
        assert stream.read(len(every)) == every
        stream.write(every)
        until(site.reactor, lambda: len(host.data) == len(every), "the bytes")
        assert host.data == every

    def test_vmotion(self, site: Site) -> None:
        a = site.host()
        a.open()
        stream = only(site)
        stream.write(b"before")
        until(site.reactor, lambda: a.data == b"before", "what was sent before")
        a.command(40, b"\xff\x01seq")
        claim = a.expect(41)
        assert claim.startswith(b"\xff\x01seq")
        assert len(claim) > 12
        stream.write(b"during")
        b = site.host()
        b.arrive(claim)
        assert b.expect(45) == b"\xff\x01seq"
        a.serial(b"last words of a, ")
        b.command(46, b"\xff\x01seq")
        b.serial(b"first words of b")
        a.serial(b"very last, ")
        a.hang_up()
        wanted = b"last words of a, very last, first words of b"
        assert stream.read(len(wanted)) == wanted
        until(site.reactor, lambda: b.data == b"during", "what was sent during")
        assert a.data == b"before"

    def test_vmotion_is_aborted(self, site: Site) -> None:
        a, stream, b = moving(site, b"1")
        stream.write(b"x")
        a.command(48)
        until(site.reactor, lambda: a.data == b"x" and b.closed, "a to go on")
        a.command(40, b"2")
        assert a.expect(41)[:1] == b"2"

    def test_the_old_host_never_closes(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vch.vspc.line.OLD_HOST_SECONDS", 0.1)
        a, stream, b = moving(site, b"1")
        b.command(46, b"1")
        b.serial(b"b")
        assert stream.read(1) == b"b"
        a.sent_away()

    def test_a_second_vmotion_meanwhile_is_not_now(self, site: Site) -> None:
        a = site.host()
        a.open()
        a.command(40, b"1")
        a.expect(41)
        a.command(40, b"2")
        assert a.expect(43) == b"2"

    def test_a_vm_comes_back_after_its_host_has_died(self, site: Site) -> None:
        a = site.host()
        a.open()
        stream = only(site)
        a.hang_up()
        b = site.host()
        b.open()
        b.serial(b"here")
        assert stream.read(4) == b"here"
        assert len(site.streams) == 1

    @pytest.mark.parametrize("claim", [b"1", b"1" + bytes(16), b"", bytes(81)])
    def test_nobody_takes_a_vm_without_its_secret(self, site: Site, claim: bytes) -> None:
        a = site.host()
        a.open()
        only(site)
        a.command(40, b"1")
        a.expect(41)
        b = site.host()
        b.arrive(claim)
        b.sent_away()
        assert not a.closed
        assert site.server.complaints

    def test_only_the_announced_host_completes(self, site: Site) -> None:
        a, stream, b = moving(site, b"1")
        b.command(46, b"2")
        b.sent_away()
        a.serial(b"still here")
        assert stream.read(10) == b"still here"

    def test_noise_on_many_connections_hurts_nobody(self, site: Site) -> None:
        good = site.host()
        good.open()
        stream = only(site)
        hosts = [site.host() for _ in range(20)]
        for host in hosts:
            host.say(b"\xff\xfa\xe8" + os.urandom(3000))
        good.serial(b"fine")
        assert stream.read(4) == b"fine"

    def test_a_reader_that_does_not_read_stops_the_host_and_nothing_is_lost(self, site: Site) -> None:
        host = site.host()
        host.open()
        stream = only(site)
        sent = turns = 0
        while turns < 50:  # turns of the loop since the host could send something
            turns += 1
            with contextlib.suppress(BlockingIOError):
                sent += host.end.send(bytes([65 + sent % 7]) * 4096)
                turns = 0
            site.reactor.run_once(0)
            assert sent < 40 << 20
        assert len(stream.read(sent)) == sent


class TestReaders:
    def test_a_reader_that_goes_leaves_the_vm_where_it_is(self, site: Site) -> None:
        host = site.host()
        host.open()
        first = only(site)
        host.serial(b"one ")
        assert first.read(4) == b"one "
        first.close()
        host.serial(b"two ")
        second = site.reader(UUID_DIGITS)
        site.streams[UUID_DIGITS] = second
        assert second.read(4) == b"two "
        second.write(b"back")
        until(site.reactor, lambda: host.data == b"back", "what the second reader says")
        assert not host.closed

    def test_only_the_last_reader_reads(self, site: Site) -> None:
        host = site.host()
        host.open()
        first = only(site)
        second = site.streams[UUID_DIGITS] = site.reader(UUID_DIGITS)
        host.serial(b"x")
        assert second.read(1) == b"x"
        first._watch.update(readable=True, writable=False)
        until(site.reactor, lambda: first.ended, "the first reader to hear that it is over")
        assert not first.got

    def test_a_vm_that_is_sent_away_comes_back_as_a_new_one(self, site: Site) -> None:
        host = site.host()
        host.open()
        only(site)
        site.server.forget(UUID_DIGITS)
        host.sent_away()
        site.streams.pop(UUID_DIGITS).close()
        host = site.host()
        host.open()
        host.serial(b"again")
        assert only(site).read(5) == b"again"

    def test_nobody_is_served_who_is_not_there(self, site: Site) -> None:
        assert site.server.open(UUID_DIGITS) is None


class ShortOfDescriptors:
    """A listener at which somebody always knocks and nobody can be let in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vch.vspc.server.ACCEPT_AGAIN_SECONDS", 0.01)
        self.tried = 0
        self._near, self._far = socket.socketpair()
        self._far.send(b"knock")

    def setblocking(self, _blocking: bool) -> None: ...

    def fileno(self) -> int:
        return self._near.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        self.tried += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def close(self) -> None:
        self._near.close()
        self._far.close()


def test_short_of_descriptors_it_rests_and_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reactor, listener = Reactor(), ShortOfDescriptors(monkeypatch)
    server = Server(reactor, cast(socket.socket, listener), SERVICE, lambda uuid, name: None)
    reactor.run_once(0)
    for _ in range(5):
        reactor.run_once(0)  # nothing is ready while it rests
    assert listener.tried == 1
    until(reactor, lambda: listener.tried == 2, "the next try")
    assert server.complaints[-1] == "serial port: accept: Too many open files"
    server.close()
    reactor.close()
