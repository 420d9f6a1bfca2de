"""One connection of an ESXi host: negotiates, learns which VM it is, passes vMotion's messages on.  Pure.

    host   WILL ext               proxy  DO ext
    host   KNOWN-SUBOPTIONS-1     proxy  KNOWN-SUBOPTIONS-2, GET-VM-NAME, GET-VM-VC-UUID
    host   DO-PROXY uri           proxy  WILL-PROXY
    host   VM-NAME, VM-VC-UUID

Codes are VMware's ("VMware Telnet Extension Commands for Proxy Communication").  A peer's PEER-OK carries the sequence
alone, a GOAHEAD sequence and secret.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from vch.vspc.telnet import (
    DO,
    DONT,
    WILL,
    WONT,
    Data,
    Negotiation,
    Parser,
    Subnegotiation,
    VspcError,
    escape,
    negotiation,
    subnegotiation,
)

BINARY, SUPPRESS_GO_AHEAD, VMWARE_EXTENSION = 0, 3, 232  # RFC 856, RFC 858, VMware
# Neither echo nor the control of baud rates and modem lines (RFC 2217, option 44): the line is virtual, there is
# nothing to control, and ESXi works without.
_OURS = frozenset((BINARY, SUPPRESS_GO_AHEAD))  # what this end does when asked to
_THEIRS = frozenset((BINARY, SUPPRESS_GO_AHEAD, VMWARE_EXTENSION))  # what it lets the host do

MOST_QUEUED = 256 << 10  # bytes waiting to be sent; beyond that the other side asks and does not read
MOST_SEQUENCE = 64  # bytes that a host may choose as a vMotion's name
SECRET_BYTES = 16
MOST_TEXT = 1024  # bytes of a name or a URI


class Command(IntEnum):
    """First byte of a subnegotiation of the extension."""

    KNOWN_SUBOPTIONS_1 = 0
    KNOWN_SUBOPTIONS_2 = 1
    UNKNOWN_SUBOPTION_RCVD_1 = 2
    UNKNOWN_SUBOPTION_RCVD_2 = 3
    VMOTION_BEGIN = 40
    VMOTION_GOAHEAD = 41
    VMOTION_NOTNOW = 43
    VMOTION_PEER = 44
    VMOTION_PEER_OK = 45
    VMOTION_COMPLETE = 46
    VMOTION_ABORT = 48
    DO_PROXY = 70
    WILL_PROXY = 71
    WONT_PROXY = 73
    VM_VC_UUID = 80
    GET_VM_VC_UUID = 81
    VM_NAME = 82
    GET_VM_NAME = 83


@dataclass(frozen=True)
class Received:
    """Bytes of the serial line."""

    data: bytes


@dataclass(frozen=True)
class Identified:
    """The VM has said who it is, and is to be served."""

    uuid: str
    name: str


@dataclass(frozen=True)
class Begin:
    """The VM is about to move."""

    sequence: bytes


@dataclass(frozen=True)
class Peer:
    """This is where it moves to: sequence and secret in one, because nothing says where one ends."""

    claim: bytes


@dataclass(frozen=True)
class Complete:
    """It has moved here."""

    sequence: bytes


@dataclass(frozen=True)
class Abort:
    """It stays where it was."""


Event = Received | Identified | Begin | Peer | Complete | Abort


class Session:
    """See the module.  `service` is the port URI that this proxy serves, as configured in the VM."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._parser = Parser()
        self._out = bytearray()
        # Options that were spoken of: done or refused.
        self._we = dict.fromkeys(sorted(_OURS), True)
        self._they = dict.fromkeys((BINARY, SUPPRESS_GO_AHEAD), True)
        self._proxying = False
        self._identified = False
        self.uuid = self.name = ""
        for option in self._we:
            self._out += negotiation(WILL, option)
        for option in self._they:
            self._out += negotiation(DO, option)

    @property
    def queued(self) -> int:
        """Bytes that wait in `transmit`."""
        return len(self._out)

    def send(self, data: bytes) -> None:
        """Bytes for the serial line."""
        self._put(escape(data))

    def transmit(self, most: int) -> bytes:
        """What is to go out next; take off what went with `sent`."""
        return bytes(self._out[:most])

    def sent(self, count: int) -> None:
        """So much of it has gone out."""
        del self._out[:count]

    def command(self, command: Command, parameters: bytes = b"") -> None:
        """Sends a command of the extension."""
        self._put(subnegotiation(VMWARE_EXTENSION, bytes((command,)) + parameters))

    def receive(self, data: bytes) -> Iterator[Event]:
        """What the host says.  Raises VspcError."""
        for item in self._parser.receive(data):
            if isinstance(item, Data):
                yield Received(item.data)
            elif isinstance(item, Negotiation):
                self._negotiate(item)
            elif item.option == VMWARE_EXTENSION:
                yield from self._extension(item)

    def _put(self, data: bytes) -> None:
        if len(self._out) + len(data) > MOST_QUEUED:
            raise VspcError("serial port", self.name or "host", "it asks and does not read the answers")
        self._out += data

    def _negotiate(self, item: Negotiation) -> None:
        """Answers what changes something, and nothing else: two ends that answer answers never stop (RFC 854)."""
        asks_us = item.verb in (DO, DONT)
        known, able = (self._we, _OURS) if asks_us else (self._they, _THEIRS)
        agreed = item.verb in (DO, WILL) and item.option in able
        if known.get(item.option) == agreed:
            return
        known[item.option] = agreed
        yes, no = (WILL, WONT) if asks_us else (DO, DONT)
        self._put(negotiation(yes if agreed else no, item.option))

    def _extension(self, item: Subnegotiation) -> Iterator[Event]:
        if not item.payload:
            raise VspcError("serial port", "telnet extension", "a command of nothing")
        code, parameters = item.payload[0], item.payload[1:]
        if code == Command.KNOWN_SUBOPTIONS_1:
            self._introduce(parameters)
        elif code == Command.DO_PROXY:
            self._proxy(parameters)
        elif code == Command.VM_VC_UUID:
            self.uuid = plain_uuid(_text(parameters))
        elif code == Command.VM_NAME:
            self.name = _text(parameters)
        elif code == Command.VMOTION_BEGIN:
            yield Begin(_sequence(parameters))
        elif code == Command.VMOTION_PEER:
            yield Peer(_sequence(parameters, MOST_SEQUENCE + SECRET_BYTES))
        elif code == Command.VMOTION_COMPLETE:
            yield Complete(_sequence(parameters))
        elif code == Command.VMOTION_ABORT:
            yield Abort()
        elif code != Command.UNKNOWN_SUBOPTION_RCVD_1:
            self.command(Command.UNKNOWN_SUBOPTION_RCVD_2, bytes((code,)))
        if self._proxying and self.uuid and not self._identified:
            self._identified = True
            yield Identified(self.uuid, self.name)

    def _introduce(self, known: bytes) -> None:
        self.command(Command.KNOWN_SUBOPTIONS_2, bytes(sorted(Command)))
        for question in (Command.GET_VM_NAME, Command.GET_VM_VC_UUID):  # the UUID last: it completes what is awaited
            if question in known:
                self.command(question)

    def _proxy(self, parameters: bytes) -> None:
        """The first byte is the direction; either way the bytes go between the VM and this program."""
        if _text(parameters[1:]) != self._service:
            self.command(Command.WONT_PROXY)
            return
        self._proxying = True
        self.command(Command.WILL_PROXY)


def plain_uuid(text: str) -> str:
    """A UUID as digits only: VMware writes "50 20 a4 ...-11 6d ...", others "5020a4...-..."."""
    return "".join(text.replace("-", "").split()).lower()


def _text(data: bytes) -> str:
    if len(data) > MOST_TEXT:
        raise VspcError("serial port", "telnet extension", f"a text of {len(data)} bytes")
    return data.decode("utf-8", "backslashreplace")


def _sequence(data: bytes, most: int = MOST_SEQUENCE) -> bytes:
    if not 0 < len(data) <= most:
        raise VspcError("serial port", "telnet extension", f"a vMotion sequence of {len(data)} bytes")
    return data
