"""What can go wrong on the link, as one tree.

    LinkError
    ├── SchemaError      a value that does not fit the record it is meant for; names the key
    └── ProtocolError    bytes or messages that a well-behaved peer does not send; the connection ends, nothing else
"""


class LinkError(Exception):
    """Base of all errors of the link."""


class SchemaError(LinkError):
    """Plain data that does not fit its record.  `where` is the path of keys, `why` what is wrong there."""

    def __init__(self, where: str, why: str) -> None:
        self.where, self.why = where, why
        super().__init__(where, why)

    def __str__(self) -> str:
        return f"{self.where or 'value'}: {self.why}"


class ProtocolError(LinkError):
    """The peer broke the protocol (docs/protocol.md)."""
