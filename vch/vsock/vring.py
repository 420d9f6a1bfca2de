"""A split virtqueue, the device's side (virtio 1.2, 2.7), over memory that the driver can change at any moment.

Whatever the driver has written there: a chain has no more descriptors than the ring, a loop is an error, an index that
claims more buffers than the ring has is an error, and each buffer lies in the guest's memory.  Every descriptor is read
once, so that what has been checked is what is used.

The indices are single aligned 16-bit loads and stores of the processor: a memoryview of format "H" makes them such.
(`struct` with a byte order may read byte by byte.)  x86 keeps stores, and keeps loads, in order; only a load may
overtake an earlier store, which matters where notifications are suppressed.  None are, in either direction.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from vch.vsock.errors import VsockError
from vch.vsock.memory import GuestMemory

LARGEST = 1024  # descriptors; QEMU's vsock has 128
_DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags, next
_NEXT, _WRITE = 1, 2  # VIRTQ_DESC_F_*; indirect descriptors are not offered, so they are an error
_KNOWN_FLAGS = _NEXT | _WRITE
_WRAP = 0xFFFF  # ring indices count modulo 65536


@dataclass(frozen=True)
class VringAddresses:
    """Where the three parts are, in QEMU's addresses."""

    descriptors: int
    available: int
    used: int


class Chain(NamedTuple):
    """Buffers of one request: what the driver has filled, then what the device may fill."""

    head: int
    readable: list[memoryview]
    writable: list[memoryview]


class Vring:
    """See the module."""

    def __init__(self, memory: GuestMemory, addresses: VringAddresses, size: int, base: int) -> None:
        """`base` is the index of the next available entry.  Raises VsockError."""
        if not 0 < size <= LARGEST or size & (size - 1):
            raise VsockError("ring", f"it cannot have {size} descriptors")
        for address, alignment in ((addresses.descriptors, 16), (addresses.available, 2), (addresses.used, 4)):
            if address % alignment:
                raise VsockError("ring", f"its part at {address:#x} is not aligned to {alignment}")
        self.size = size
        self._memory = memory
        self._descriptors = memory.user(addresses.descriptors, _DESCRIPTOR.size * size)
        self._available = memory.user(addresses.available, 4 + 2 * size).cast("H")
        used = memory.user(addresses.used, 4 + 8 * size)
        self._used_index, self._used = used.cast("H"), used.cast("I")
        self.next = base & _WRAP
        self._done = self._used_index[1]

    def pop(self) -> Chain | None:
        """The next buffers that the driver offers, or None.  Raises VsockError."""
        waiting = (self._available[1] - self.next) & _WRAP
        if not waiting:
            return None
        if waiting > self.size:
            raise VsockError("ring", f"{waiting} buffers are said to be available, of {self.size}")
        head = self._available[2 + self.next % self.size]
        chain = self._chain(head)
        self.next = (self.next + 1) & _WRAP
        return chain

    def unpop(self) -> None:
        """Gives back what was popped last, untouched."""
        self.next = (self.next - 1) & _WRAP

    def push(self, chain: Chain, written: int) -> None:
        """Hands buffers back, the first `written` bytes of their writable part filled."""
        at = 1 + 2 * (self._done % self.size)
        self._used[at] = chain.head
        self._used[at + 1] = written
        self._done = (self._done + 1) & _WRAP
        self._used_index[1] = self._done

    def _chain(self, head: int) -> Chain:
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        index = head
        for _ in range(self.size):
            if index >= self.size:
                raise VsockError("descriptor", f"number {index} of {self.size}")
            address, length, flags, following = _DESCRIPTOR.unpack_from(self._descriptors, index * _DESCRIPTOR.size)
            if flags & ~_KNOWN_FLAGS:
                raise VsockError("descriptor", f"flags {flags:#x} were not agreed on")
            if flags & _WRITE:
                writable.append(self._memory.guest(address, length))
            elif writable:
                raise VsockError("descriptor", "a buffer to read comes after one to write")
            else:
                readable.append(self._memory.guest(address, length))
            if not flags & _NEXT:
                return Chain(head, readable, writable)
            index = following
        raise VsockError("descriptor", "the chain is a loop")
