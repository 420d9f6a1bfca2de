"""The last words of a VM: its Goodbye as a line of text, for when the link cannot carry it.

    tether-goodbye:1:CBOR IN HEXADECIMAL:CRC-32 OF THE CBOR IN HEXADECIMAL

The console takes a line whatever else has failed, and the appliance reads it in any case.  But kernel messages and
everybody who may write to the console share it, so a record is only believed when it is whole: the check sum stands
for that, and not for truth.  The guest is as untrusted here as on the link.
"""

from zlib import crc32

from tether.link.cbor import dumps, loads
from tether.link.errors import LinkError
from tether.link.messages import Goodbye
from tether.link.record import decode, encode

MARK = "tether-goodbye:1:"
LONGEST_TEXT = 400  # characters of each text: a serial line is slow, and a message has one sentence
_CHECK_DIGITS = 8


def write_last_words(goodbye: Goodbye) -> str:
    """The line, without its end."""
    fault = goodbye.fault
    if fault is not None:
        fault = fault.but(object=fault.object[:LONGEST_TEXT], text=fault.text[:LONGEST_TEXT],
                          hint=fault.hint[:LONGEST_TEXT])
    body = dumps(encode(Goodbye(reason=goodbye.reason[:LONGEST_TEXT], fault=fault)))
    return f"{MARK}{body.hex()}:{crc32(body):0{_CHECK_DIGITS}x}"


def read_last_words(console: str) -> Goodbye | None:
    """The last record in what a console said that is whole; None if there is none."""
    end = len(console)
    while (start := console.rfind(MARK, 0, end)) >= 0:
        found = _read(console[start + len(MARK) : end])
        if found is not None:
            return found
        end = start
    return None


def _read(text: str) -> Goodbye | None:
    body, colon, rest = text.partition(":")
    try:
        content, check = bytes.fromhex(body), int(rest[:_CHECK_DIGITS], 16)
        if not colon or crc32(content) != check:
            return None
        return decode(Goodbye, loads(content))
    except (ValueError, LinkError):
        return None
