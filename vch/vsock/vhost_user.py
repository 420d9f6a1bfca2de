"""QEMU's side of the device: vhost-user messages over the socket that QEMU inherited.

They say where the guest's memory is, where in it the rings are, which eventfd means that the guest has put something
there (kick) and which one interrupts the guest (call).  Source: QEMU, docs/interop/vhost-user.rst.

QEMU waits for each answer, so the answers always fit into the socket.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from tether.link.reactor import Reactor, Watch
from vch.vsock.device import EVENTS, GUEST_CID, Device, ring_eventfd
from vch.vsock.errors import VsockError
from vch.vsock.memory import MOST_REGIONS, GuestMemory, Region
from vch.vsock.vring import Vring, VringAddresses

_HEADER = struct.Struct("<III")  # request, flags, size of the payload
_VERSION, _VERSION_MASK, _REPLY, _NEED_REPLY = 1, 3, 4, 8
_U64 = struct.Struct("<Q")
_INDEX_VALUE = struct.Struct("<II")
_ADDRESSES = struct.Struct("<IIQQQQ")  # index, flags, descriptors, used, available, log
_REGION = struct.Struct("<QQQQ")
_CONFIG = struct.Struct("<III")  # offset, size, flags
_MOST_PAYLOAD = 512  # bytes; the longest that we know are 264 (regions) and 268 (config)
_FD_BYTES = 4
_NO_FD = 0x100  # in the payload of a message that could carry an eventfd
_REPORT = "report it: this QEMU does not speak vhost-user as vch does"

VIRTIO_F_VERSION_1 = 1 << 32
PROTOCOL_FEATURES = 1 << 30  # VHOST_USER_F_PROTOCOL_FEATURES
FEATURES = VIRTIO_F_VERSION_1 | PROTOCOL_FEATURES
REPLY_ACK, CONFIG = 1 << 3, 1 << 9  # VHOST_USER_PROTOCOL_F_*


class Request(IntEnum):
    """The messages that QEMU sends to a device like this."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24


@dataclass
class _Ring:
    """What is known of a ring so far; it runs once there is an eventfd that says when."""

    size: int = 0
    base: int = 0
    addresses: VringAddresses | None = None
    kick: int = -1
    call: int = -1
    watch: Watch | None = None
    enabled: bool = True  # QEMU before 7.2.1 does not say so; it says when a ring is *not* enabled
    running: bool = False

    def replace_kick(self, fd: int) -> None:
        """Takes another eventfd, or none (-1), in the place of the old one."""
        if self.watch is not None:
            self.watch.close()
            self.watch = None
        self.kick = _replaced(self.kick, fd)

    def replace_call(self, fd: int) -> None:
        """As `replace_kick`."""
        self.call = _replaced(self.call, fd)


@dataclass
class _Message:
    """One message; file descriptors that are not taken from it are closed."""

    request: int
    flags: int
    payload: bytes
    fds: list[int] = field(default_factory=list)


class VhostUser:
    """Serves `control`, and the device with it.  `on_end` is called when QEMU is gone."""

    def __init__(self, reactor: Reactor, control: socket.socket, device: Device, on_end: Callable[[], None]) -> None:
        """Owns `control`."""
        control.setblocking(False)
        self._reactor, self._control, self._device, self._on_end = reactor, control, device, on_end
        self._head = b""  # of a message that has not come completely
        self._fds: list[int] = []
        self._memory = GuestMemory([])
        self._rings = {index: _Ring() for index in range(EVENTS + 1)}
        self._protocol = 0
        self._answers: dict[int, Callable[[_Message], bytes | None]] = {
            Request.GET_FEATURES: lambda _message: _U64.pack(FEATURES),
            Request.GET_PROTOCOL_FEATURES: lambda _message: _U64.pack(REPLY_ACK | CONFIG),
            Request.SET_FEATURES: self._set_features,
            Request.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            Request.SET_OWNER: _agree,
            Request.RESET_OWNER: _agree,
            Request.GET_CONFIG: _get_config,
            Request.SET_MEM_TABLE: self._set_memory,
            Request.SET_VRING_NUM: self._set_size,
            Request.SET_VRING_ADDR: self._set_addresses,
            Request.SET_VRING_BASE: self._set_base,
            Request.GET_VRING_BASE: self._stop,
            Request.SET_VRING_KICK: self._set_kick,
            Request.SET_VRING_CALL: self._set_call,
            Request.SET_VRING_ERR: _agree,
            Request.SET_VRING_ENABLE: self._enable,
        }
        self._watch = reactor.watch(control.fileno(), self._ready)

    def close(self) -> None:
        """Gives back everything.  A second call does nothing."""
        self._watch.close()
        self._control.close()
        for ring in self._rings.values():
            ring.replace_kick(-1)
            ring.replace_call(-1)
        _close_all(self._fds)
        self._device.close()
        self._memory = GuestMemory([])

    # messages

    def _ready(self, _ready: int) -> None:
        while (message := self._receive()) is not None:
            try:
                self._answer(message)
            except struct.error as error:
                raise VsockError("vhost-user", f"message {message.request}: {error}", _REPORT) from error
            finally:
                _close_all(message.fds)

    def _receive(self) -> _Message | None:
        """The next message, or None if it has not come yet."""
        if len(self._head) < _HEADER.size and not self._fill(_HEADER.size):
            return None
        request, flags, size = _HEADER.unpack_from(self._head)
        if size > _MOST_PAYLOAD or flags & _VERSION_MASK != _VERSION:
            raise VsockError("vhost-user", f"message {request}: {size} bytes, flags {flags:#x}", _REPORT)
        if not self._fill(_HEADER.size + size):
            return None
        message = _Message(request, flags, self._head[_HEADER.size :], self._fds)
        self._head, self._fds = b"", []
        return message

    def _fill(self, wanted: int) -> bool:
        """Reads until so many bytes of the message are there; False if they have not come yet."""
        while len(self._head) < wanted:
            room = socket.CMSG_SPACE(MOST_REGIONS * _FD_BYTES)
            try:
                data, extra, flags, _ = self._control.recvmsg(wanted - len(self._head), room, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                data, extra, flags = b"", [], 0
            for level, kind, content in extra:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._fds += struct.unpack(f"={len(content) // _FD_BYTES}i", content)
            if flags & socket.MSG_CTRUNC or len(self._fds) > MOST_REGIONS:
                raise VsockError("vhost-user", "a message with too many file descriptors", _REPORT)
            if not data:
                self._watch.close()
                self._device.finish(self._on_end)
                return False
            self._head += data
        return True

    def _answer(self, message: _Message) -> None:
        answer = self._answers.get(message.request)
        if answer is None:
            raise VsockError("vhost-user", f"unknown message {message.request}", _REPORT)
        payload = answer(message)
        if payload is None:
            if not (message.flags & _NEED_REPLY and self._protocol & REPLY_ACK):
                return
            payload = _U64.pack(0)
        whole = _HEADER.pack(message.request, _VERSION | _REPLY, len(payload)) + payload
        try:
            sent = self._control.send(whole)
        except BlockingIOError:
            sent = 0
        except (BrokenPipeError, ConnectionResetError):
            return  # it has ended meanwhile, which the next read says
        if sent < len(whole):
            raise VsockError("vhost-user", "QEMU does not take its answers", _REPORT)

    # what they say

    def _set_features(self, message: _Message) -> None:
        (features,) = _U64.unpack(message.payload)
        if features & ~FEATURES:
            raise VsockError("vhost-user", f"features {features:#x} were not offered", _REPORT)

    def _set_protocol_features(self, message: _Message) -> None:
        (self._protocol,) = _U64.unpack(message.payload)

    def _set_memory(self, message: _Message) -> None:
        (count,) = struct.unpack_from("<I", message.payload)
        if count != len(message.fds) or len(message.payload) < 8 + count * _REGION.size:
            raise VsockError("vhost-user", f"{count} memory regions, {len(message.fds)} file descriptors", _REPORT)
        regions = [Region(*_REGION.unpack_from(message.payload, 8 + at * _REGION.size)) for at in range(count)]
        self._memory = GuestMemory(list(zip(regions, message.fds, strict=True)))
        for index, ring in self._rings.items():  # memory was added to a running guest: the rings have moved with it
            if ring.running:
                self._halt(index, ring)
                self._run(index, ring)

    def _set_size(self, message: _Message) -> None:
        _, ring, size = self._ring_of(message)
        ring.size = size

    def _set_base(self, message: _Message) -> None:
        _, ring, base = self._ring_of(message)
        ring.base = base

    def _set_addresses(self, message: _Message) -> None:
        index, _flags, descriptors, used, available, _log = _ADDRESSES.unpack(message.payload)
        ring = self._ring(index)
        ring.addresses = VringAddresses(descriptors, available, used)
        if ring.running:
            self._halt(index, ring)
            self._run(index, ring)

    def _set_kick(self, message: _Message) -> None:
        index, ring, fd = self._eventfd_of(message)
        if fd < 0:
            raise VsockError("vhost-user", "a ring to be polled: there is no eventfd for it", _REPORT)
        ring.replace_kick(fd)
        ring.watch = self._reactor.watch(fd, lambda _ready: self._kicked(ring))
        self._run(index, ring)

    def _set_call(self, message: _Message) -> None:
        _, ring, fd = self._eventfd_of(message)
        ring.replace_call(fd)

    def _enable(self, message: _Message) -> None:
        index, ring, enabled = self._ring_of(message)
        ring.enabled = bool(enabled)
        if ring.enabled:
            self._run(index, ring)
        else:
            self._halt(index, ring)

    def _stop(self, message: _Message) -> bytes:
        index, ring, _ = self._ring_of(message)
        self._halt(index, ring)
        ring.replace_kick(-1)
        return _INDEX_VALUE.pack(index, ring.base)

    # rings

    def _run(self, index: int, ring: _Ring) -> None:
        """Starts a ring, if all is known that it takes."""
        if ring.running or not ring.enabled or ring.kick < 0 or ring.addresses is None:
            return
        vring = Vring(self._memory, ring.addresses, ring.size, ring.base)
        ring.running = True
        self._device.start_ring(index, vring, lambda: self._interrupt(ring))

    def _halt(self, index: int, ring: _Ring) -> None:
        if ring.running:
            ring.running = False
            vring = self._device.stop_ring(index)
            ring.base = vring.next if vring is not None else ring.base

    def _kicked(self, ring: _Ring) -> None:
        try:
            os.eventfd_read(ring.kick)
        except BlockingIOError:
            return
        if ring.running:
            self._device.kicked()

    @staticmethod
    def _interrupt(ring: _Ring) -> None:
        if ring.call >= 0:
            ring_eventfd(ring.call)

    def _ring(self, index: int) -> _Ring:
        if index not in self._rings:
            raise VsockError("vhost-user", f"ring {index}", _REPORT)
        return self._rings[index]

    def _ring_of(self, message: _Message) -> tuple[int, _Ring, int]:
        index, value = _INDEX_VALUE.unpack(message.payload)
        return index, self._ring(index), value

    def _eventfd_of(self, message: _Message) -> tuple[int, _Ring, int]:
        (value,) = _U64.unpack(message.payload)
        index = value & (_NO_FD - 1)
        ring = self._ring(index)
        fd = -1 if value & _NO_FD or not message.fds else message.fds.pop(0)
        return index, ring, fd


def _replaced(old: int, fd: int) -> int:
    if old >= 0:
        os.close(old)
    if fd >= 0:
        os.set_blocking(fd, False)
    return fd


def _agree(_message: _Message) -> None:
    """Nothing follows from it."""


def _get_config(message: _Message) -> bytes:
    """The device's configuration: the guest's CID (virtio 1.2, 5.10.4)."""
    offset, size, flags = _CONFIG.unpack_from(message.payload)
    content = _U64.pack(GUEST_CID)
    if size > _MOST_PAYLOAD - _CONFIG.size:
        raise VsockError("vhost-user", f"{size} bytes of configuration", _REPORT)
    return _CONFIG.pack(offset, size, flags) + content[offset : offset + size].ljust(size, b"\0")


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
