"""PAX extended headers: records of ``length key=value``.

Sources: POSIX.1-2017 *pax* ("pax Extended Header"), star(5) for SCHILY.*, libarchive's tar(5) for LIBARCHIVE.*.
Functions raise `ValueError` with a cause fit for a person.
"""

from __future__ import annotations

from base64 import b64decode
from urllib.parse import unquote_to_bytes

_SCHILY_XATTR = b"SCHILY.xattr."
_LIBARCHIVE_XATTR = b"LIBARCHIVE.xattr."
#: What tar programs that do not store extended attributes as such do for SELinux labels.
_SELINUX_LABEL = b"RHT.security.selinux"

_NS_DIGITS = 9
#: Longer than any 64-bit number, short enough that converting it costs nothing.
_MAX_DIGITS = 20


def parse_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """All records in order.  Order and repetition matter to GNU sparse format 0.0 only."""
    records = []
    at, end = 0, len(data)
    while at < end:
        space = data.find(b" ", at, at + _MAX_DIGITS)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            if not data[at:].strip(b"\0"):
                break  # padding that some writers count as data
            raise ValueError("a PAX record does not begin with its length")
        stop = at + int(digits)
        if not space < stop <= end or data[stop - 1 : stop] != b"\n":
            raise ValueError("a PAX record's length is wrong")
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if not equals or not key:
            raise ValueError("a PAX record holds no key=value")
        records.append((key, value))
        at = stop
    return records


def decimal(value: bytes, what: str) -> int:
    """A number in decimal digits, for the field *what*."""
    if not value.isdigit() or len(value) > _MAX_DIGITS:
        raise ValueError(f"its {what} is not a number: {value[:40]!r}")
    return int(value)


def signed_decimal(value: bytes, what: str) -> int:
    """A number in decimal digits that may be negative."""
    return -decimal(value[1:], what) if value[:1] == b"-" else decimal(value, what)


def timestamp(value: bytes) -> tuple[int, int]:
    """Seconds rounded down and nanoseconds, from ``[-]seconds[.fraction]``; digits beyond 1 ns are dropped."""
    whole, _, fraction = value.partition(b".")
    seconds = signed_decimal(whole or b"0", "modification time")
    if not fraction:
        return seconds, 0
    nanoseconds = decimal(fraction[:_NS_DIGITS].ljust(_NS_DIGITS, b"0"), "modification time")
    if value[:1] == b"-" and nanoseconds:
        return seconds - 1, 1_000_000_000 - nanoseconds
    return seconds, nanoseconds


def _from_libarchive(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """libarchive percent-encodes the name and writes the value in base 64 without padding."""
    try:
        return unquote_to_bytes(name), b64decode(value + b"=" * (-len(value) % 4))
    except ValueError:
        raise ValueError(f"the extended attribute {name[:80]!r} is not base 64") from None


def xattrs(records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The extended attributes among *records*.  SCHILY's come first: they are the exact bytes."""
    found: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key.startswith(_SCHILY_XATTR):
            found[key[len(_SCHILY_XATTR) :]] = value
        elif key.startswith(_LIBARCHIVE_XATTR):
            name, decoded = _from_libarchive(key[len(_LIBARCHIVE_XATTR) :], value)
            if _SCHILY_XATTR + name not in records:
                found[name] = decoded
        elif key == _SELINUX_LABEL:
            found.setdefault(b"security.selinux", value.rstrip(b"\0") + b"\0")
    return found
