"""What can go wrong on the link, as one tree.

    LinkError
    ├── SchemaError      a value that does not fit the record it is meant for; names the key
    ├── UsageError       this side asks for what the link does not offer (a write after finish, a message too long)
    ├── CongestedError   the control ring is full: the peer takes nothing; try again later or give up
    ├── TransportError   the device or socket under the link cannot be opened; says which, why and what to do
    └── ProtocolError    bytes or messages that a well-behaved peer does not send; the connection ends, nothing else
        └── CborError    a payload that is not the CBOR subset of docs/protocol.md
"""


class LinkError(Exception):
    """Base of all errors of the link."""


class SchemaError(LinkError):
    """Plain data that does not fit its record.  `where` is the path of keys, `why` what is wrong there."""

    def __init__(self, where: str, why: str) -> None:
        self.where, self.why = where, why
        super().__init__(where, why)

    def below(self, key: str) -> "SchemaError":
        """The same, seen from outside of `key`: a name, or "[number]"."""
        dot = "." if self.where and self.where[0] != "[" else ""
        return SchemaError(f"{key}{dot}{self.where}", self.why)

    def __str__(self) -> str:
        return f"{self.where or 'value'}: {self.why}"


class UsageError(LinkError):
    """The caller of the link asked for something it does not do."""


class CongestedError(LinkError):
    """The peer does not take control messages and the ring is full."""


class TransportError(LinkError):
    """A transport cannot be opened: `step` what was tried, `object` on what, `text` why, `hint` what to do about it."""

    def __init__(self, step: str, object: str, text: str, hint: str = "") -> None:
        self.step, self.object, self.text, self.hint = step, object, text, hint
        super().__init__(step, object, text, hint)

    def __str__(self) -> str:
        return f"{self.step} {self.object}: {self.text}" + (f" ({self.hint})" if self.hint else "")


class ProtocolError(LinkError):
    """The peer broke the protocol (docs/protocol.md)."""


class CborError(ProtocolError):
    """Bytes that are not the CBOR subset of docs/protocol.md."""
