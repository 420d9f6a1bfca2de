"""What an endpoint tells its owner (`Endpoint.events`, `Wire`'s callback)."""

from tether.link.record import Record


class Connected(Record):
    """Both ends know where every stream stands; data flows from here on.

    `instance` names the peer (16 random bytes of its start), `generation` is the one both speak, `software` what the
    peer says it is.  `resumed`: the peer is the one we knew and knew us, nothing is lost.  `replaced`: we knew another
    one.  To the appliance that means a different VM state (rebooted, another clone): every stream is broken and every
    pending request has been answered with a Fault.  To tether it means another appliance that has taken over.
    """

    instance: bytes
    generation: int
    software: str
    resumed: bool
    replaced: bool


class Disconnected(Record):
    """The transport is gone; streams keep what they hold and go on at the next Connected."""

    reason: str


class Refused(Record):
    """The two ends cannot work together; `reason` is a sentence for people.  Nothing more will happen on this link."""

    reason: str


class Failed(Record):
    """The peer broke the protocol and the connection was ended (Wire only; `Endpoint.receive` raises instead)."""

    reason: str


class Requested(Record):
    """tether: a request to be answered under `id`."""

    id: int
    message: Record


class Answered(Record):
    """Appliance: the answer to request `id`, or a messages.Fault."""

    id: int
    message: Record


class Notified(Record):
    """Appliance: an event of tether."""

    message: Record


class Readable(Record):
    """A stream has bytes to read, or has ended."""

    stream: int


class Writable(Record):
    """A stream that took less than it was given has room again."""

    stream: int


class Drained(Record):
    """Everything written to a finished stream has been taken by the peer's program."""

    stream: int


class Stopped(Record):
    """The peer wants no more of what we write to this stream; what is written from now on is discarded."""

    stream: int


class Aborted(Record):
    """The peer gave up writing this stream; what was received can still be read, the rest never comes."""

    stream: int


class Gone(Record):
    """`count` bytes of this incoming stream were taken by a predecessor of ours; reading starts after them."""

    stream: int
    count: int


class Overtaken(Record):
    """The peer has `count` bytes of this outgoing stream that this end does not remember having written.

    An endpoint that was restored from an older snapshot, or that took over without one, continues after them.
    """

    stream: int
    count: int


Event = (
    Connected | Disconnected | Refused | Failed | Requested | Answered | Notified
    | Readable | Writable | Drained | Stopped | Aborted | Gone | Overtaken
)  # fmt: skip
