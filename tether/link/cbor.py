"""CBOR (RFC 8949), the deterministic subset that control payloads use (docs/protocol.md, "Values").

Understood: integers of 64 bits, byte strings, text, arrays, maps with text keys, booleans, null and 64-bit floats.
Lengths are definite, integers and lengths take the shortest form, map keys stand in ascending order of their encoded
bytes, nothing follows the value.  So a value has exactly one encoding, and a duplicate key cannot be written down.

Why not JSON: arguments, environment and paths are bytes, and importing `json` costs 28 million instructions.
"""

from struct import Struct
from struct import error as StructError

from tether.link.errors import CborError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Buffer

MAX_DEPTH = 24  # arrays and maps inside one another; the deepest message of ours has 9

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _OTHER = (major << 5 for major in (0, 1, 2, 3, 4, 5, 7))
_FALSE, _TRUE, _NULL, _FLOAT = 0xF4, 0xF5, 0xF6, 0xFB
_DOUBLE = Struct(">d")
_ARGUMENTS = {  # low bits of the initial byte: form of the argument, the least that needs this form
    24: (Struct(">B"), 24),
    25: (Struct(">H"), 1 << 8),
    26: (Struct(">I"), 1 << 16),
    27: (Struct(">Q"), 1 << 32),
}


def dumps(value: "Any") -> bytes:
    """The one encoding of plain data.

    Text that is not Unicode (surrogates, as from undecodable file names) goes out with backslash escapes: an error
    message must never fail for the name it mentions.  Raises TypeError for anything that is not plain data and
    OverflowError for integers of more than 64 bits.
    """
    out: list[bytes] = []
    _encode(value, out, MAX_DEPTH)
    return b"".join(out)


def loads(data: "Buffer") -> "Any":
    """Decodes exactly one value.  Raises CborError for whatever `dumps` would not have written."""
    raw = bytes(data)
    value, end = _decode(raw, 0, MAX_DEPTH)
    if end != len(raw):
        raise CborError(f"{len(raw) - end} bytes after the value")
    return value


def _encode(value: "Any", out: list[bytes], depth: int) -> None:
    if value is None or value is True or value is False:
        out.append(bytes((_NULL if value is None else _TRUE if value else _FALSE,)))
    elif isinstance(value, int):
        out.append(_head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value))
    elif isinstance(value, str):
        encoded = value.encode("utf-8", "backslashreplace")
        out += (_head(_TEXT, len(encoded)), encoded)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        out += (_head(_BYTES, len(value)), bytes(value))
    elif isinstance(value, float):
        out.append(bytes((_FLOAT,)) + _DOUBLE.pack(value))
    elif isinstance(value, (list, tuple, dict)):
        if depth == 0:
            raise OverflowError(f"more than {MAX_DEPTH} arrays and maps inside one another")
        _encode_container(value, out, depth - 1)
    else:
        raise TypeError(f"cannot encode {type(value).__name__} as CBOR")


def _encode_container(value: "list[Any] | tuple[Any, ...] | dict[Any, Any]", out: list[bytes], depth: int) -> None:
    if not isinstance(value, dict):
        out.append(_head(_ARRAY, len(value)))
        for item in value:
            _encode(item, out, depth)
        return
    out.append(_head(_MAP, len(value)))
    keyed = {_key(key): item for key, item in value.items()}
    for key in sorted(keyed):
        out.append(key)
        _encode(keyed[key], out, depth)


def _key(key: "Any") -> bytes:
    if not isinstance(key, str):
        raise TypeError(f"map keys are text, not {type(key).__name__}")
    encoded = key.encode("utf-8")
    return _head(_TEXT, len(encoded)) + encoded


def _head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes((major | argument,))
    for short, (form, _least) in _ARGUMENTS.items():
        if argument < 1 << (8 * form.size):
            return bytes((major | short,)) + form.pack(argument)
    raise OverflowError("an integer of more than 64 bits")


def _decode(raw: bytes, at: int, depth: int) -> "tuple[Any, int]":
    if at >= len(raw):
        raise CborError("ends in the middle of a value")
    initial = raw[at]
    if initial >= _OTHER:
        return _decode_other(raw, at, initial)
    argument, at = _decode_head(raw, at, initial & 31)
    major = initial & 0xE0
    if major == _UNSIGNED:
        return argument, at
    if major == _NEGATIVE:
        return -1 - argument, at
    if major in (_BYTES, _TEXT):
        return _decode_string(raw, at, argument, major)
    if major not in (_ARRAY, _MAP):
        raise CborError(f"initial byte 0x{initial:02x} (a tag) is not of the subset")
    if depth == 0:
        raise CborError(f"more than {MAX_DEPTH} arrays and maps inside one another")
    if argument > len(raw) - at:  # every item has at least one byte: a huge count is refused before anything is made
        raise CborError(f"{argument} items announced, {len(raw) - at} bytes left")
    return (_decode_array if major == _ARRAY else _decode_map)(raw, at, argument, depth - 1)


def _decode_head(raw: bytes, at: int, short: int) -> tuple[int, int]:
    """The argument of the initial byte at `at`, and where the bytes after it begin."""
    if short < 24:
        return short, at + 1
    if short not in _ARGUMENTS:
        raise CborError(f"initial byte 0x{raw[at]:02x} (indefinite or reserved) is not of the subset")
    form, least = _ARGUMENTS[short]
    try:
        argument = int(form.unpack_from(raw, at + 1)[0])
    except StructError:
        raise CborError("ends in the middle of a number") from None
    if argument < least:
        raise CborError(f"{argument} is not in its shortest form")
    return argument, at + 1 + form.size


def _decode_string(raw: bytes, at: int, length: int, major: int) -> "tuple[bytes | str, int]":
    end = at + length
    if end > len(raw):
        raise CborError(f"a string of {length} bytes announced, {len(raw) - at} bytes left")
    if major == _BYTES:
        return raw[at:end], end
    try:
        return raw[at:end].decode("utf-8"), end
    except UnicodeDecodeError as error:
        raise CborError(f"text that is not UTF-8: {error.reason}") from None


def _decode_array(raw: bytes, at: int, count: int, depth: int) -> "tuple[list[Any], int]":
    items = []
    for _ in range(count):
        item, at = _decode(raw, at, depth)
        items.append(item)
    return items, at


def _decode_map(raw: bytes, at: int, count: int, depth: int) -> "tuple[dict[str, Any], int]":
    items: dict[str, Any] = {}
    before = b""
    for _ in range(count):
        start = at
        if at >= len(raw) or raw[at] & 0xE0 != _TEXT:
            raise CborError("a map key that is not text")
        key, at = _decode(raw, at, 0)
        if raw[start:at] <= before:
            raise CborError(f"map key {key!r:.40} is out of order or doubled")
        before = raw[start:at]
        items[key], at = _decode(raw, at, depth)
    return items, at


def _decode_other(raw: bytes, at: int, initial: int) -> "tuple[Any, int]":
    if initial == _FLOAT:
        if at + 9 > len(raw):
            raise CborError("ends in the middle of a float")
        return _DOUBLE.unpack_from(raw, at + 1)[0], at + 9
    if initial not in (_FALSE, _TRUE, _NULL):
        raise CborError(f"initial byte 0x{initial:02x} is not of the subset")
    return (None if initial == _NULL else initial == _TRUE), at + 1
