"""Control messages that most machines never see (docs/protocol.md, "Control messages").

They are as much part of the protocol as those of tether.link.messages, but both ends import this module at the first
of them only: each record costs a cold boot 45,000 instructions.  `tether.late` answers the requests.

Requests that move bytes name a session number of their own, which no exec has; its streams carry them: the standard
output what comes out of the guest, the standard input what goes in.
"""

from tether.link.record import Record


class Stat(Record):
    """What is at this path of the container?  A symbolic link at its end is not followed, unless a "/" follows it."""

    path: bytes


class FileStat(Record):
    """Answer to Stat: as lstat(2) has it.

    `name` is the last part of the path, `link` what a symbolic link says, `target` the path in the container to which
    it leads in the end (also where nothing is there).
    """

    name: bytes
    mode: int  # type and permissions
    size: int
    mtime_ns: int
    uid: int
    gid: int
    link: bytes = b""
    target: bytes = b""


LATE_REQUESTS: dict[str, type[Record]] = {cls.__name__: cls for cls in (Stat,)}
LATE_ANSWERS: dict[str, type[Record]] = {
    "Stat": FileStat,
}
LATE_EVENTS: dict[str, type[Record]] = {}
