"""Packets of virtio-vsock (virtio 1.2, 5.10.6): a header of 44 bytes, then data."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from vch.vsock.errors import VsockError

_HEADER = struct.Struct("<QQIIIHHIII")
HEADER_BYTES = _HEADER.size
STREAM = 1  # VIRTIO_VSOCK_TYPE_STREAM; the other one, SEQPACKET, is not offered
NO_MORE_RECEIVED, NO_MORE_SENT = 1, 2  # flags of SHUTDOWN, seen from who sends it
MODULUS = 1 << 32  # byte counts wrap


class Op(IntEnum):
    """What a packet is for."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Header(NamedTuple):
    """In the order of the wire.  `op` may be a number that is no Op."""

    from_cid: int
    to_cid: int
    from_port: int
    to_port: int
    length: int
    kind: int
    op: int
    flags: int
    buffer: int
    forwarded: int

    def packed(self) -> bytes:
        """The 44 bytes."""
        return _HEADER.pack(*self)


def take_header(parts: Sequence[memoryview]) -> tuple[Header, list[memoryview]]:
    """The header at the start of the buffers, and the data that it speaks of.  Raises VsockError.

    A buffer may be longer than the packet; the header may be spread over several.
    """
    if parts and len(parts[0]) >= HEADER_BYTES:
        raw: bytes | memoryview = parts[0][:HEADER_BYTES]
    else:
        raw = b"".join(part[:HEADER_BYTES] for part in parts)[:HEADER_BYTES]
        if len(raw) < HEADER_BYTES:
            raise VsockError("packet", f"{len(raw)} bytes are less than a header")
    header = Header(*_HEADER.unpack(raw))
    data = section(parts, HEADER_BYTES, header.length)
    if sum(map(len, data)) < header.length:
        raise VsockError("packet", f"it says it has {header.length} bytes, its buffers have fewer")
    return header, data


def section(parts: Sequence[memoryview], start: int, length: int) -> list[memoryview]:
    """At most `length` bytes of the buffers, from `start` on."""
    found = []
    for part in parts:
        if length <= 0:
            break
        if start >= len(part):
            start -= len(part)
            continue
        piece = part[start : start + length]
        start = 0
        length -= len(piece)
        found.append(piece)
    return found


def put_header(parts: Sequence[memoryview], header: Header) -> None:
    """Writes the header to the start of the buffers, which have room for it."""
    raw = header.packed()
    for part in section(parts, 0, HEADER_BYTES):
        part[:] = raw[: len(part)]
        raw = raw[len(part) :]
