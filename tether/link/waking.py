"""What wakes a clone: a message before the link begins (docs/protocol.md, "Clones").

A template has everything in memory that each of its clones will have: an instance, nonces and random numbers drawn
there would be the same in all of them.  So its link does not begin yet.  It says WAITING on the bare transport and is
frozen.  A clone's first bytes are the Wake; when the clone has taken it in, it draws them anew and the link begins.

A template may be told to Prepare instead: it builds the root filesystem of an image, says WAITING again, and is frozen
again.

    8 bytes   b"vch-wake" or b"vch-root"
    4 bytes   length of the body, big-endian
    4 bytes   CRC-32 of the body
    body      the record Wake or Prepare in CBOR
"""

import struct
from zlib import crc32

from tether.link import cbor
from tether.link.errors import ProtocolError
from tether.link.record import Record, decode, encode
from tether.spec import Identity, Interface, Root

WAITING = b"vch-template-3\n"  # grows with what a template and its clones agree on
_HEADER = struct.Struct(">8sII")
HEADER_BYTES = _HEADER.size
MAX_BODY = 65536


class Wake(Record):
    """You are another VM now."""

    identity: Identity


class Prepare(Record):
    """Your clones will have this root filesystem, and interfaces like these: build it, switch them on, and wait again.

    `interfaces` are as in a spec, but for their MAC addresses, which are those of the template.  `capabilities` are
    those of the processes that will probably be started, as in a spec; others can be.
    """

    root: Root
    interfaces: tuple[Interface, ...] = ()
    capabilities: tuple[str, ...] | None = None


_MAGIC: dict[type[Wake] | type[Prepare], bytes] = {Wake: b"vch-wake", Prepare: b"vch-root"}
_KINDS = {magic: kind for kind, magic in _MAGIC.items()}


def pack(message: Wake | Prepare) -> bytes:
    """The message."""
    body = cbor.dumps(encode(message))
    return _HEADER.pack(_MAGIC[type(message)], len(body), crc32(body)) + body


def body_length(header: bytes) -> int:
    """How many bytes follow the header.  Raises ProtocolError for what is no header."""
    magic, length, _ = _HEADER.unpack(header)
    if magic not in _KINDS or length > MAX_BODY:
        raise ProtocolError(f"{header!r} does not wake a clone")
    return int(length)


def unpack(header: bytes, body: bytes) -> Wake | Prepare:
    """The record.  Raises ProtocolError if it is damaged, SchemaError if it is of another generation."""
    magic, _, checksum = _HEADER.unpack(header)
    if crc32(body) != checksum:
        raise ProtocolError("the message that wakes a clone is damaged")
    return decode(_KINDS[magic], cbor.loads(body))
