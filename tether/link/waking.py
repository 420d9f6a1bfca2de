"""What wakes a clone: one message before the link begins (docs/protocol.md, "Clones").

A template has everything in memory that each of its clones will have: an instance, nonces and random numbers drawn
there would be the same in all of them.  So its end of the link is not made yet.  It says WAITING on the bare transport
and is frozen.  A clone's first bytes are the Wake; when the clone has taken it in, the link begins as in any VM.

    8 bytes   b"vch-wake"
    4 bytes   length of the body, big-endian
    4 bytes   CRC-32 of the body
    body      the record Wake in CBOR
"""

import struct
from zlib import crc32

from tether.link import cbor
from tether.link.errors import ProtocolError
from tether.link.record import Record, decode, encode
from tether.spec import Identity

WAITING = b"vch-template-1\n"  # grows with what a template and its clones agree on
_MAGIC = b"vch-wake"
_HEADER = struct.Struct(">8sII")
HEADER_BYTES = _HEADER.size
MAX_BODY = 65536


class Wake(Record):
    """You are another VM now."""

    identity: Identity


def pack(wake: Wake) -> bytes:
    """The message."""
    body = cbor.dumps(encode(wake))
    return _HEADER.pack(_MAGIC, len(body), crc32(body)) + body


def body_length(header: bytes) -> int:
    """How many bytes follow the header.  Raises ProtocolError for what is no header."""
    magic, length, _ = _HEADER.unpack(header)
    if magic != _MAGIC or length > MAX_BODY:
        raise ProtocolError(f"{header!r} does not wake a clone")
    return int(length)


def unpack(header: bytes, body: bytes) -> Wake:
    """The record.  Raises ProtocolError if it is damaged, SchemaError if it is of another generation."""
    if crc32(body) != _HEADER.unpack(header)[2]:
        raise ProtocolError("the message that wakes a clone is damaged")
    return decode(Wake, cbor.loads(body))
