"""The vsock device against a scripted guest: a good one is served, a bad one ends in one typed error."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import vsock_front as front
from tests.vsock_front import Front
from tether.link.reactor import Reactor
from vch.vsock import device as device_module
from vch.vsock.device import Device
from vch.vsock.errors import VsockError
from vch.vsock.stream import BUFFER, Stream
from vch.vsock.vhost_user import VhostUser


@dataclass
class Pair:
    """A guest, its device, and the host's ends of the connections."""

    front: Front
    backend: VhostUser
    reactor: Reactor
    accepted: list[socket.socket]
    gone: list[bool]

    @property
    def host(self) -> socket.socket:
        """The host's end of the last connection."""
        return self.accepted[-1]

    def close(self) -> None:
        self.backend.close()
        self.front.close()
        for end in self.accepted:
            end.close()
        self.reactor.close()


def new_pair() -> Pair:
    reactor = Reactor()
    near, far = socket.socketpair()
    accepted: list[socket.socket] = []
    gone: list[bool] = []

    def connected(end: socket.socket) -> None:
        end.setblocking(False)
        accepted.append(end)

    backend = VhostUser(reactor, near, Device(reactor, front.PORT, connected), lambda: gone.append(True))
    return Pair(Front(reactor, far), backend, reactor, accepted, gone)


@pytest.fixture
def idle() -> Iterator[Pair]:
    """Nothing has been said yet."""
    made = new_pair()
    yield made
    made.close()


@pytest.fixture
def pair(idle: Pair) -> Pair:
    """The rings run, and there are buffers."""
    idle.front.start()
    idle.front.give_buffers()
    return idle


@pytest.fixture
def connected(pair: Pair) -> Pair:
    """There is a connection."""
    pair.front.connect()
    return pair


def read_all(pair: Pair) -> bytes:
    """What the host's end can read now; the device goes on meanwhile."""
    found = b""
    while True:
        try:
            data = pair.host.recv(1 << 20)
        except BlockingIOError:
            return found
        if not data:
            return found
        found += data
        pair.front.run()


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


class TestVhostUser:
    def test_the_guests_cid_is_in_the_configuration(self, idle: Pair) -> None:
        answer = idle.front.ask(24, struct.pack("<III", 0, 8, 0) + bytes(8))
        assert answer == struct.pack("<III", 0, 8, 0) + struct.pack("<Q", front.GUEST)

    def test_a_message_in_pieces(self, idle: Pair) -> None:
        whole = struct.pack("<III", 24, 1, 20) + struct.pack("<III", 0, 8, 0) + bytes(8)
        for at in range(len(whole)):
            idle.front.control.send(whole[at : at + 1])
            idle.front.run()
        assert idle.front.control.recv(100)[12 + 12 :] == struct.pack("<Q", front.GUEST)

    @pytest.mark.parametrize(("request_", "payload"), [
        (99, b""), (6, b""), (9, b"short"), (8, struct.pack("<II", 7, 8)), (12, struct.pack("<Q", 0x100)),
        (2, struct.pack("<Q", 1 << 28)), (5, struct.pack("<II", 3, 0) + bytes(96)),
        (24, struct.pack("<III", 0, 501, 0)),
    ])  # fmt: skip
    def test_a_message_that_is_wrong(self, idle: Pair, request_: int, payload: bytes) -> None:
        with pytest.raises(VsockError, match="vsock: vhost-user"):
            idle.front.say(request_, payload)

    @pytest.mark.parametrize(("size", "flags"), [(1 << 31, 1), (8, 0), (8, 2)])
    def test_a_header_that_is_wrong(self, idle: Pair, size: int, flags: int) -> None:
        idle.front.control.send(struct.pack("<III", 1, flags, size))
        with pytest.raises(VsockError):
            idle.front.run()

    def test_memory_that_could_shrink_is_refused(self, idle: Pair) -> None:
        fd = os.memfd_create("unsealed")
        os.ftruncate(fd, front.SIZE)
        region = struct.pack("<QQQQ", front.GUEST_BASE, front.SIZE, front.USER_BASE, 0)
        with pytest.raises(VsockError, match="not sealed"):
            idle.front.say(5, struct.pack("<II", 1, 0) + region, (fd,))
        os.close(fd)

    @pytest.mark.parametrize("region", [
        (0, 0, 0, 0), (0, front.SIZE + 4096, 0, 0), (0, 4096, 0, 512), (2**64 - 4096, 8192, 0, 0),
        (0, 4096, 0, front.SIZE),
    ])  # fmt: skip
    def test_a_region_that_is_none(self, idle: Pair, region: tuple[int, ...]) -> None:
        with pytest.raises(VsockError, match="memory region"):
            idle.front.say(5, struct.pack("<II", 1, 0) + struct.pack("<QQQQ", *region), (idle.front.memfd,))

    def test_a_ring_outside_memory_or_unaligned(self, idle: Pair) -> None:
        idle.front.agree()
        idle.front.share()
        for address in (front.USER_BASE + 4, front.USER_BASE + front.SIZE, 0):
            idle.front.say(8, struct.pack("<II", 0, 128))
            idle.front.say(9, struct.pack("<IIQQQQ", 0, 0, address, address, address, 0))
            with pytest.raises(VsockError, match="ring"):
                idle.front.say(12, struct.pack("<Q", 0), (idle.front.kicks[0],))
            idle.front.say(11, struct.pack("<II", 0, 0))
            idle.front.control.recv(100)

    @pytest.mark.parametrize("size", [0, 3, 2048])
    def test_a_ring_of_an_odd_size(self, idle: Pair, size: int) -> None:
        idle.front.agree()
        idle.front.share()
        at = front.USER_BASE
        idle.front.say(8, struct.pack("<II", 0, size))
        idle.front.say(9, struct.pack("<IIQQQQ", 0, 0, at, at, at, 0))
        with pytest.raises(VsockError, match="ring"):
            idle.front.say(12, struct.pack("<Q", 0), (idle.front.kicks[0],))

    def test_stopped_and_started_again_it_goes_on(self, connected: Pair) -> None:
        """QEMU does so when the machine is paused."""
        for index in (front.RX, front.TX):
            answer = connected.front.ask(11, struct.pack("<II", index, 0))
            base = struct.unpack("<II", answer)[1]
            assert base == 1, "each has carried one packet"
            connected.front.ring(index, base)
        connected.host.send(b"there")
        assert connected.front.one().data == b"there"
        connected.front.send(front.RW, b"back")
        assert read_all(connected) == b"back"

    def test_memory_told_anew_while_it_runs(self, connected: Pair) -> None:
        connected.front.share()
        connected.front.send(front.RW, b"x")
        assert read_all(connected) == b"x"

    def test_a_disabled_ring_is_left_alone(self, connected: Pair) -> None:
        connected.front.say(18, struct.pack("<II", front.TX, 0))
        connected.front.send(front.RW, b"x")
        assert read_all(connected) == b""
        connected.front.say(18, struct.pack("<II", front.TX, 1))
        assert read_all(connected) == b"x"

    def test_nothing_stays_open(self) -> None:
        before = open_descriptors()
        made = new_pair()
        made.front.start()
        made.front.give_buffers()
        made.front.connect()
        with pytest.raises(VsockError):
            made.front.say(99, b"", (made.front.memfd,) * 5)
        made.close()
        assert open_descriptors() == before

    def test_when_qemu_is_gone_what_was_sent_still_arrives(self, connected: Pair) -> None:
        data = random.Random(1).randbytes(BUFFER)
        for at in range(0, len(data), 1 << 16):  # more than the socket takes at once
            connected.front.send(front.RW, data[at : at + (1 << 16)])
        connected.front.control.shutdown(socket.SHUT_RDWR)
        connected.front.run()
        assert read_all(connected) == data
        connected.front.run()
        assert connected.gone == [True]
        assert connected.host.recv(1) == b""


class TestConnections:
    def test_bytes_both_ways(self, connected: Pair) -> None:
        connected.front.send(front.RW, b"from the guest")
        assert read_all(connected) == b"from the guest"
        connected.host.send(b"from the host")
        assert connected.front.one().data == b"from the host"

    @pytest.mark.parametrize("pieces", [(), (1,), (10, 10), (44,), (44, 5), (43, 1), (60,), (1,) * 60])
    def test_a_packet_in_any_pieces(self, connected: Pair, pieces: tuple[int, ...]) -> None:
        connected.front.put(connected.front.packet(front.RW, b"0123456789abcdef"), pieces)
        assert read_all(connected) == b"0123456789abcdef"

    def test_packets_are_as_long_as_the_guests_buffers(self, connected: Pair) -> None:
        connected.host.send(bytes(10000))
        assert [len(packet.data) for packet in connected.front.packets()] == [3732, 3732, 2536]

    def test_a_port_where_nobody_listens(self, pair: Pair) -> None:
        pair.front.send(front.REQUEST, to_port=1)
        answer = pair.front.one()
        assert (answer.op, answer.from_port, answer.to_port) == (front.RST, 1, 1000)

    def test_a_process_without_privileges(self, pair: Pair) -> None:
        pair.front.send(front.REQUEST, from_port=1024)
        assert pair.front.one().op == front.RST
        assert not pair.accepted

    def test_data_without_a_connection_is_refused_and_a_reset_is_not_answered(self, pair: Pair) -> None:
        pair.front.send(front.RW, b"x")
        assert pair.front.one().op == front.RST
        pair.front.send(front.RST)
        assert pair.front.packets() == []

    def test_packets_of_others_are_passed_over(self, pair: Pair) -> None:
        pair.front.send(front.REQUEST, from_cid=4)
        pair.front.send(front.REQUEST, to_cid=7)
        assert pair.front.packets() == []
        pair.front.send(front.REQUEST, kind=2)  # SEQPACKET
        assert pair.front.one().op == front.RST

    def test_one_connection_at_a_time(self, connected: Pair) -> None:
        connected.front.send(front.REQUEST, from_port=1001)
        refused = connected.front.one()
        assert (refused.op, refused.to_port) == (front.RST, 1001)
        connected.front.send(front.RW, b"still there")
        assert read_all(connected) == b"still there"

    def test_the_guest_hangs_up_and_connects_again(self, connected: Pair) -> None:
        for port in range(1000, 950, -1):
            connected.front.send(front.RW, b"last", from_port=port)
            connected.front.send(front.SHUTDOWN, flags=3, from_port=port)
            assert connected.front.one().op == front.RST
            assert connected.host.recv(100) == b"last"
            assert connected.host.recv(100) == b""
            connected.host.close()
            connected.front.send(front.REQUEST, from_port=port - 1)
            assert connected.front.one().op == front.RESPONSE

    def test_the_guest_resets(self, connected: Pair) -> None:
        connected.front.send(front.RW, b"last")
        connected.front.send(front.RST)
        assert connected.front.packets() == []
        assert connected.host.recv(100) == b"last"
        assert connected.host.recv(100) == b""

    def test_the_host_hangs_up(self, connected: Pair) -> None:
        connected.host.send(b"last")
        connected.host.close()
        last, end = connected.front.packets()
        assert (last.data, end.op, end.flags) == (b"last", front.SHUTDOWN, 3)
        connected.front.send(front.RW, b"late")  # crossed on the way
        assert connected.front.packets() == []
        connected.front.send(front.REQUEST, from_port=1001)
        assert connected.front.one().op == front.RESPONSE
        connected.front.send(front.RST)
        assert connected.front.packets() == []

    def test_both_hang_up_at_once(self, connected: Pair) -> None:
        connected.host.close()
        assert connected.front.one().op == front.SHUTDOWN
        connected.front.send(front.SHUTDOWN, flags=3)
        assert connected.front.one().op == front.RST
        connected.front.send(front.REQUEST)  # the same port is free again
        assert connected.front.one().op == front.RESPONSE

    def test_a_guest_that_never_answers_the_end(self, pair: Pair) -> None:
        """Its connections are forgotten, the oldest first: they take a bounded room."""
        for port in range(100):
            pair.front.send(front.REQUEST, from_port=port)
            assert pair.front.one().op == front.RESPONSE
            pair.host.close()
            assert pair.front.one().op == front.SHUTDOWN
        assert len(pair.backend._device._streams) <= device_module.MOST_STREAMS

    @pytest.mark.parametrize("op", [0, front.REQUEST, front.RESPONSE, 8, 0xFFFF])
    def test_a_packet_that_does_not_belong_ends_the_connection(self, connected: Pair, op: int) -> None:
        connected.front.send(op)
        assert connected.front.one().op == front.RST
        assert connected.host.recv(1) == b""


class TestCredit:
    def test_the_guest_hears_of_room_before_it_runs_out(self, connected: Pair) -> None:
        data, told, sent = random.Random(2).randbytes(8 * BUFFER), 0, 0
        arrived = b""
        while sent < len(data):
            room = BUFFER - (sent - told)
            assert room > 0, "the guest has to wait although all was read"
            size = min(room, 1 << 16)
            connected.front.send(front.RW, data[sent : sent + size])
            sent += size
            arrived += read_all(connected)
            told = max([told, *(packet.forwarded for packet in connected.front.packets())])
        assert arrived == data

    def test_a_reader_that_is_slow_stops_the_guest_and_nothing_is_lost(self, connected: Pair) -> None:
        data = random.Random(3).randbytes(BUFFER * 4)
        sent, told = 0, 0
        while True:
            room = min(1 << 16, BUFFER - (sent - told), len(data) - sent)
            if not room:
                break
            connected.front.send(front.RW, data[sent : sent + room])
            sent += room
            told = max([told, *(packet.forwarded for packet in connected.front.packets())])
        assert sent < len(data), "somebody keeps everything"
        arrived = read_all(connected)
        connected.front.run()
        assert arrived + read_all(connected) == data[:sent]
        assert max(packet.forwarded for packet in connected.front.packets()) > told

    def test_more_than_the_credit_ends_the_connection(self, connected: Pair) -> None:
        for _ in range(BUFFER // (1 << 16) + 8):  # what the socket takes comes on top
            connected.front.send(front.RW, bytes(1 << 16))
        assert front.RST in [packet.op for packet in connected.front.packets()]

    def test_no_more_is_sent_than_the_guest_has_room_for(self, pair: Pair) -> None:
        pair.front.buffer = 5000
        pair.front.connect()
        pair.host.send(bytes(12000))
        assert sum(len(packet.data) for packet in pair.front.packets()) == 5000
        assert pair.front.packets() == []
        pair.front.send(front.CREDIT_UPDATE)  # with the count of what was read
        assert sum(len(packet.data) for packet in pair.front.packets()) == 5000
        pair.front.send(front.CREDIT_UPDATE)
        assert sum(len(packet.data) for packet in pair.front.packets()) == 2000

    def test_the_guest_asks_for_it(self, connected: Pair) -> None:
        connected.front.send(front.RW, b"12345")
        connected.front.send(front.CREDIT_REQUEST)
        answer = connected.front.one()
        assert (answer.op, answer.buffer, answer.forwarded) == (front.CREDIT_UPDATE, BUFFER, 5)

    def test_without_buffers_data_waits(self, idle: Pair) -> None:
        idle.front.start()
        idle.front.give_buffers(1)
        idle.front.connect()
        idle.front.packets(again=False)
        idle.host.send(bytes(10000))
        (first,) = idle.front.packets(again=False)
        assert len(first.data) == 3732
        assert idle.front.packets(again=False) == []
        idle.front.give_buffers(8)
        assert sum(len(packet.data) for packet in idle.front.packets(again=False)) == 10000 - 3732


class TestHostileGuest:
    @pytest.mark.parametrize(("address", "length", "flags", "following"), [
        (0, 44, 0, 0), (front.GUEST_BASE + front.SIZE - 10, 44, 0, 0), (2**64 - 1, 44, 0, 0),
        (front.GUEST_BASE, 2**32 - 1, 0, 0), (front.GUEST_BASE, 44, front.NEXT, 0),
        (front.GUEST_BASE, 44, front.NEXT, 500),
        (front.GUEST_BASE, 44, front.INDIRECT, 0), (front.GUEST_BASE, 43, 0, 0), (front.GUEST_BASE, 44, front.WRITE, 0),
        (front.GUEST_BASE, 44, 0xFFF8, 0),
    ])  # fmt: skip
    def test_descriptors(self, pair: Pair, address: int, length: int, flags: int, following: int) -> None:
        pair.front.describe(front.TX, 0, address, length, flags, following)
        with pytest.raises(VsockError):
            pair.front.offer(front.TX, 0)

    def test_a_head_that_the_ring_does_not_have(self, pair: Pair) -> None:
        with pytest.raises(VsockError):
            pair.front.offer(front.TX, 128)

    def test_an_index_from_nowhere(self, pair: Pair) -> None:
        pair.front.offered[front.TX] = 1000
        with pytest.raises(VsockError, match="are said to be available"):
            pair.front.offer(front.TX, 0)

    def test_a_length_that_the_packet_does_not_have(self, connected: Pair) -> None:
        with pytest.raises(VsockError, match="its buffers have fewer"):
            connected.front.send(front.RW, b"abc", length=2**32 - 1)

    def test_buffers_to_write_before_those_to_read(self, pair: Pair) -> None:
        pair.front.describe(front.TX, 0, front.GUEST_BASE, 10, front.NEXT | front.WRITE, 1)
        pair.front.describe(front.TX, 1, front.GUEST_BASE, 44)
        with pytest.raises(VsockError, match="comes after"):
            pair.front.offer(front.TX, 0)

    @pytest.mark.parametrize("size", [0, 43, 44])
    def test_buffers_without_room(self, idle: Pair, size: int) -> None:
        def talk() -> None:
            idle.front.send(front.REQUEST)
            idle.host.send(b"x")
            idle.front.run()

        idle.front.start()
        idle.front.give_buffers(20, size)
        with pytest.raises(VsockError, match="no room for"):
            talk()

    def test_replies_that_nobody_takes_stop_the_guest(self, idle: Pair) -> None:
        idle.front.start()  # and no buffers
        for _ in range(120):
            idle.front.send(front.REQUEST, to_port=1)
        assert idle.front.taken() == device_module.MOST_REPLIES
        idle.front.give_buffers(127)
        assert len(idle.front.packets(again=False)) == 120

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def test_anything_at_all(self, data: st.DataObject) -> None:
        """Random packets and descriptors: an answer or a VsockError; no other error, no loop, nothing unbounded."""
        made = new_pair()
        numbers = st.one_of(st.integers(0, 9), st.sampled_from([43, 44, 128, 0xFFFF, 2**31, 2**32 - 1]))
        try:
            made.front.start()
            made.front.give_buffers(data.draw(st.integers(0, 127)))
            for _ in range(data.draw(st.integers(1, 30))):
                kind = data.draw(st.sampled_from(["packet", "raw", "descriptor", "host"]))
                if kind == "packet":
                    other = data.draw(st.dictionaries(st.sampled_from(["from_port", "flags", "buffer", "forwarded",
                                                                       "length"]), numbers, max_size=2))
                    made.front.send(data.draw(st.integers(0, 8)), data.draw(st.binary(max_size=100)), **other)
                elif kind == "raw":
                    made.front.put(data.draw(st.binary(max_size=120)), tuple(data.draw(st.lists(st.integers(0, 60),
                                                                                               max_size=4))))
                elif kind == "descriptor":
                    index, number = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 3))
                    address = front.GUEST_BASE + data.draw(st.integers(-50, front.SIZE + 50))
                    made.front.describe(index, number, address, data.draw(numbers), data.draw(st.integers(0, 7)),
                                        data.draw(st.integers(0, 130)))
                    made.front.offer(index, data.draw(st.integers(0, 130)))
                elif made.accepted:
                    try:
                        made.host.send(data.draw(st.binary(min_size=1, max_size=5000)))
                    except (BrokenPipeError, ConnectionResetError):
                        made.host.close()
                        made.accepted.pop()
                made.front.run()
            device = made.backend._device
            assert len(device._streams) <= device_module.MOST_STREAMS
            assert len(device._replies) <= device_module.MOST_REPLIES + 2 * device_module.MOST_STREAMS
        except VsockError:
            pass
        finally:
            made.close()


ROUNDS_TO_END = 2000  # what a socket holds, in a single buffer of 256 bytes of data, is 832 of them


def test_what_is_kept_goes_before_what_comes_even_if_there_is_room_again() -> None:
    near, far = socket.socketpair()
    stream = Stream(1000, near)
    far.setblocking(False)
    parts = [bytes([number]) * size for number, size in enumerate((200 << 10, 200 << 10, 50 << 10))]
    assert stream.receive([memoryview(parts[0])])
    assert stream.receive([memoryview(parts[1])])
    assert stream.pending, "the socket takes everything: this tests nothing"
    heard = far.recv(1 << 20)
    assert stream.receive([memoryview(parts[2])])
    while len(heard) < sum(map(len, parts)):
        stream.flush()
        heard += far.recv(1 << 20)
    assert heard == b"".join(parts)
    near.close()
    far.close()


class Talk:
    """Both ends of a connection, each of which says more and more of an endless text, and what each has heard."""

    TEXT = random.Random(6).randbytes(4 << 20)

    def __init__(self, pair: Pair, buffer: int) -> None:
        self.pair, self.front = pair, pair.front
        self.said, self.heard = [0, 0], [bytearray(), bytearray()]  # of the guest, of the host
        self.told = 0  # how much of the guest's the device has passed on, as far as the guest knows
        self.front.buffer = buffer
        self.front.start()

    def guest_says(self, size: int) -> None:
        size = min(size, 1 << 16, BUFFER - (self.said[0] - self.told))
        if size:
            self.front.send(front.RW, self.TEXT[self.said[0] : self.said[0] + size])
            self.said[0] += size

    def host_says(self, size: int) -> None:
        with suppress(BlockingIOError):
            self.said[1] += self.pair.host.send(self.TEXT[self.said[1] : self.said[1] + size])
        self.front.run()

    def guest_hears(self, _size: int) -> None:
        for packet in self.front.packets():
            self.heard[0] += packet.data
            self.told = max(self.told, packet.forwarded)
        self.front.send(front.CREDIT_UPDATE)

    def host_hears(self, size: int) -> None:
        with suppress(BlockingIOError):
            self.heard[1] += self.pair.host.recv(size + 1)
        self.front.run()

    def pause(self, _size: int) -> None:
        for index in (front.RX, front.TX):
            base = struct.unpack("<II", self.front.ask(11, struct.pack("<II", index, 0)))[1]
            self.front.ring(index, base)

    def finish(self) -> None:
        """Both hear the rest."""
        self.front.buffer = 1 << 18  # else a byte at a time
        for _ in range(ROUNDS_TO_END):
            self.guest_hears(0)
            self.host_hears(1 << 20)
            if [len(heard) for heard in self.heard] == self.said[::-1]:
                return
        raise AssertionError(f"said {self.said[::-1]}, heard {[len(heard) for heard in self.heard]}")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    buffer=st.integers(1, 1 << 18), offered=st.integers(1, 127), size=st.integers(300, 4096),
    turns=st.lists(st.tuples(st.sampled_from(["guest_says", "host_says", "guest_hears", "host_hears", "pause"]),
                             st.integers(1, 1 << 17)), max_size=40),
)  # fmt: skip
def test_every_byte_once_and_in_order(buffer: int, offered: int, size: int, turns: list[tuple[str, int]]) -> None:
    """Whatever the sizes of buffers and credit are, whoever is slow, and however often the machine stands still."""
    pair = new_pair()
    try:
        talk = Talk(pair, buffer)
        pair.front.give_buffers(offered, size)
        pair.front.connect()
        for what, much in turns:
            getattr(talk, what)(much)
        talk.finish()
        assert talk.heard[0] == talk.TEXT[: talk.said[1]]
        assert talk.heard[1] == talk.TEXT[: talk.said[0]]
    finally:
        pair.close()
