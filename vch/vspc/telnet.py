"""Telnet, as far as a serial line in binary mode needs it (RFC 854, RFC 855).  Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vch.errors import OperationError

SE, SB, WILL, WONT, DO, DONT, IAC = 240, 250, 251, 252, 253, 254, 255
NEGOTIATIONS = (WILL, WONT, DO, DONT)
MOST_SUBNEGOTIATION = 4096  # bytes; the longest that ESXi sends are a URI and a VM's name
_ESCAPE = bytes([IAC])


class VspcError(OperationError):
    """The other side of a serial port connection does what no ESXi host does: the connection ends."""


@dataclass(frozen=True)
class Data:
    """Bytes of the serial line."""

    data: bytes


@dataclass(frozen=True)
class Negotiation:
    """IAC WILL/WONT/DO/DONT option."""

    verb: int
    option: int


@dataclass(frozen=True)
class Subnegotiation:
    """IAC SB option payload IAC SE, without escapes."""

    option: int
    payload: bytes


Item = Data | Negotiation | Subnegotiation


def escape(data: bytes) -> bytes:
    """Data as it travels: IAC is doubled."""
    return data.replace(_ESCAPE, _ESCAPE * 2)


def negotiation(verb: int, option: int) -> bytes:
    """The three bytes."""
    return bytes((IAC, verb, option))


def subnegotiation(option: int, payload: bytes) -> bytes:
    """The whole sequence, escaped."""
    return bytes((IAC, SB, option)) + escape(payload) + bytes((IAC, SE))


class Parser:
    """Takes bytes cut anywhere."""

    def __init__(self) -> None:
        self._state = self._data
        self._verb = 0
        self._gathered = bytearray()  # of a subnegotiation
        self._items: list[Item] = []

    def receive(self, data: bytes) -> Iterator[Item]:
        """What the bytes say, in order; every item before the next byte is looked at.  Raises VspcError."""
        at = 0
        while at < len(data):
            at = self._state(data, at)
            items, self._items = self._items, []
            yield from items

    def _data(self, data: bytes, at: int) -> int:
        end = data.find(IAC, at)
        if end < 0:
            self._items.append(Data(data[at:]))
            return len(data)
        if end > at:
            self._items.append(Data(data[at:end]))
        self._state = self._command
        return end + 1

    def _command(self, data: bytes, at: int) -> int:
        code = data[at]
        self._state = self._data
        if code == IAC:
            self._items.append(Data(_ESCAPE))
        elif code in NEGOTIATIONS:
            self._verb, self._state = code, self._option
        elif code == SB:
            self._gathered.clear()
            self._state = self._inside
        # Any other command (NOP, break, go ahead) says nothing to a serial line.
        return at + 1

    def _option(self, data: bytes, at: int) -> int:
        self._items.append(Negotiation(self._verb, data[at]))
        self._state = self._data
        return at + 1

    def _inside(self, data: bytes, at: int) -> int:
        end = data.find(IAC, at)
        if end < 0:
            self._gather(data[at:])
            return len(data)
        self._gather(data[at:end])
        self._state = self._command_inside
        return end + 1

    def _command_inside(self, data: bytes, at: int) -> int:
        if data[at] == IAC:
            self._gather(_ESCAPE)
            self._state = self._inside
        elif data[at] == SE:
            if not self._gathered:
                raise VspcError("serial port", "telnet", "a subnegotiation of nothing")
            self._items.append(Subnegotiation(self._gathered[0], bytes(self._gathered[1:])))
            self._state = self._data
        else:
            raise VspcError("serial port", "telnet", f"command {data[at]} inside of a subnegotiation")
        return at + 1

    def _gather(self, data: bytes) -> None:
        if len(self._gathered) + len(data) > MOST_SUBNEGOTIATION:
            raise VspcError("serial port", "telnet", f"a subnegotiation of more than {MOST_SUBNEGOTIATION} bytes")
        self._gathered += data
