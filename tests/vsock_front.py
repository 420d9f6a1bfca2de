"""A guest and its QEMU, scripted: the front end of vhost-user and the driver's side of the rings.

Written from virtio 1.2 and QEMU's vhost-user specification, apart from the device it is for.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import select
import socket
import struct
from dataclasses import dataclass

from tether.link.reactor import Reactor

SIZE = 1 << 20  # of the guest's memory
GUEST_BASE, USER_BASE = 0x100000, 0x7F00_0000_0000  # where the guest, and QEMU, see it
RING = 128
RX_BYTES = 3776  # what Linux 6.1 offers: one descriptor of this size
RX, TX, EVENTS = 0, 1, 2
HOST, GUEST = 2, 3
PORT = 5180
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
NEXT, WRITE, INDIRECT = 1, 2, 4
HEADER = struct.Struct("<QQIIIHHIII")
_MESSAGE = struct.Struct("<III")
_RINGS_AT = 0  # three rings of 8 KiB each at the start of memory: descriptors, available, used
_RING_ROOM = 8192
_AVAILABLE, _USED = 4096, 6144
_RX_AT = 1 << 16
_TX_AT = _RX_AT + RING * 4096
_TX_ROOM = 128 << 10
ANSWER_SECONDS = 60.0
ROUNDS = 2000  # of the reactor, at most, until something that is awaited has come


@dataclass
class Packet:
    """What came from the device."""

    from_port: int
    to_port: int
    op: int
    flags: int
    buffer: int
    forwarded: int
    data: bytes


class Front:
    """Connected to `control`, whose other end the device has."""

    def __init__(self, reactor: Reactor, control: socket.socket) -> None:
        self.reactor, self.control = reactor, control
        control.settimeout(ANSWER_SECONDS)
        self.memfd = os.memfd_create("guest", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(self.memfd, SIZE)
        fcntl.fcntl(self.memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.memory = mmap.mmap(self.memfd, SIZE)
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.offered = [0, 0]  # our available index of each ring
        self.seen = [0, 0]  # how much of the used ring we have looked at
        self.received = 0  # bytes of data, of all connections
        self.buffer = 1 << 18  # what we say our buffer is

    def close(self) -> None:
        """Gives back everything."""
        self.control.close()
        self.memory.close()
        for fd in (self.memfd, *self.kicks, *self.calls):
            os.close(fd)

    # vhost-user

    def say(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 1) -> None:
        """Sends a message, and lets the device have it."""
        socket.send_fds(self.control, [_MESSAGE.pack(request, flags, len(payload)) + payload], list(fds))
        self.run()

    def ask(self, request: int, payload: bytes = b"", flags: int = 1) -> bytes:
        """Sends a message; the payload of the answer."""
        self.say(request, payload, (), flags)
        said, answer_flags, size = _MESSAGE.unpack(self.control.recv(_MESSAGE.size))
        assert (said, answer_flags & 7) == (request, 5)
        return self.control.recv(size) if size else b""

    def agree(self) -> None:
        """What QEMU says first."""
        features = struct.unpack("<Q", self.ask(1))[0]
        assert features & 1 << 32, "virtio 1"
        self.ask(15)
        self.say(16, struct.pack("<Q", 1 << 9 | 1 << 3))
        self.say(3)
        self.say(2, struct.pack("<Q", 1 << 32))

    def start(self) -> None:
        """All that QEMU says until the rings run."""
        self.agree()
        self.share()
        for index in (RX, TX):
            self.ring(index)

    def share(self, size: int = SIZE) -> None:
        """Tells where memory is."""
        region = struct.pack("<QQQQ", GUEST_BASE, size, USER_BASE, 0)
        assert self._acknowledged(5, struct.pack("<II", 1, 0) + region, (self.memfd,))

    def _acknowledged(self, request: int, payload: bytes, fds: tuple[int, ...]) -> bool:
        self.say(request, payload, fds, 9)
        return self.control.recv(20) == _MESSAGE.pack(request, 5, 8) + bytes(8)

    def ring(self, index: int, base: int = 0) -> None:
        """Starts a ring."""
        at = USER_BASE + self.part(index, 0)
        self.say(8, struct.pack("<II", index, RING))
        self.say(10, struct.pack("<II", index, base))
        self.say(9, struct.pack("<IIQQQQ", index, 0, at, at + _USED, at + _AVAILABLE, 0))
        self.say(13, struct.pack("<Q", index), (self.calls[index],))
        self.say(12, struct.pack("<Q", index), (self.kicks[index],))

    # the driver

    @staticmethod
    def part(index: int, offset: int) -> int:
        """Where something of a ring is, from the start of memory."""
        return _RINGS_AT + index * _RING_ROOM + offset

    def describe(self, index: int, number: int, *fields: int) -> None:
        """Writes a descriptor: address, length, flags, next."""
        struct.pack_into("<QIHH", self.memory, self.part(index, 16 * number), *fields, *(0,) * (4 - len(fields)))

    def offer(self, index: int, head: int, *, kick: bool = True) -> None:
        """Makes a chain available."""
        at = self.part(index, _AVAILABLE)
        struct.pack_into("<H", self.memory, at + 4 + 2 * (self.offered[index] % RING), head)
        self.offered[index] = (self.offered[index] + 1) & 0xFFFF
        struct.pack_into("<H", self.memory, at + 2, self.offered[index])
        if kick:
            self.kick(index)

    def kick(self, index: int) -> None:
        """Tells the device."""
        os.eventfd_write(self.kicks[index], 1)
        self.run()

    def give_buffers(self, count: int = RING - 1, size: int = RX_BYTES) -> None:
        """Buffers for packets to the guest."""
        for number in range(count):
            self.describe(RX, number, GUEST_BASE + _RX_AT + number * 4096, size, WRITE)
            self.offer(RX, number, kick=False)
        self.kick(RX)

    def put(self, raw: bytes, pieces: tuple[int, ...] = ()) -> None:
        """Sends raw bytes as one chain, in pieces of these lengths and the rest."""
        assert len(raw) <= _TX_ROOM
        self.memory[_TX_AT : _TX_AT + len(raw)] = raw
        ends = [0]
        for piece in pieces:
            ends.append(min(len(raw), ends[-1] + piece))
        ends.append(len(raw))
        for number, (start, end) in enumerate(itertools.pairwise(ends)):
            last = number == len(ends) - 2
            flags = 0 if last else NEXT
            self.describe(TX, number, GUEST_BASE + _TX_AT + start, end - start, flags, 0 if last else number + 1)
        self.offer(TX, 0)

    def packet(self, op: int, data: bytes = b"", **other: int) -> bytes:
        """A packet from port 1000 of the guest."""
        fields = {"from_cid": GUEST, "to_cid": HOST, "from_port": 1000, "to_port": PORT, "length": len(data), "kind": 1,
                  "op": op, "flags": 0, "buffer": self.buffer, "forwarded": self.received & 0xFFFFFFFF}  # fmt: skip
        fields.update(other)
        return HEADER.pack(*fields.values()) + data

    def send(self, op: int, data: bytes = b"", **other: int) -> None:
        """Sends a packet."""
        self.put(self.packet(op, data, **other), (HEADER.size,) if data else ())

    def packets(self, *, again: bool = True) -> list[Packet]:
        """What has come since; the buffers go back if `again`."""
        self.run()
        (done,) = struct.unpack_from("<H", self.memory, self.part(RX, _USED) + 2)
        found, heads = [], []
        while self.seen[RX] != done:
            at = self.part(RX, _USED) + 4 + 8 * (self.seen[RX] % RING)
            head, length = struct.unpack_from("<II", self.memory, at)
            address = struct.unpack_from("<Q", self.memory, self.part(RX, 16 * head))[0] - GUEST_BASE
            raw = self.memory[address : address + length]
            found.append(self._parsed(raw))
            heads.append(head)
            self.seen[RX] = (self.seen[RX] + 1) & 0xFFFF
        if again and heads:
            for head in heads:
                self.offer(RX, head, kick=False)
            self.kick(RX)
        return found

    def one(self) -> Packet:
        """The one packet that has come."""
        (packet,) = self.packets()
        return packet

    def taken(self) -> int:
        """How many packets the device has taken from us."""
        return int(struct.unpack_from("<H", self.memory, self.part(TX, _USED) + 2)[0])

    def connect(self) -> None:
        """Sends a request, and takes the response."""
        self.send(REQUEST)
        assert self.one().op == RESPONSE

    def _parsed(self, raw: bytes) -> Packet:
        from_cid, to_cid, from_port, to_port, length, kind, op, flags, buffer, forwarded = HEADER.unpack_from(raw)
        assert (from_cid, to_cid, kind) == (HOST, GUEST, 1)
        assert length == len(raw) - HEADER.size
        self.received += length
        return Packet(from_port, to_port, op, flags, buffer, forwarded, raw[HEADER.size :])

    def run(self) -> None:
        """Has the device do what there is to do."""
        for _ in range(ROUNDS):
            self.reactor.run_once(0)
            if not self.reactor._soon and not select.select([self.reactor._epoll], [], [], 0)[0]:
                return
        raise AssertionError("the device does not come to rest")
