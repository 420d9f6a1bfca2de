"""The control messages, as records (docs/protocol.md, "Control messages").

A *request* goes from the appliance to tether and gets exactly one answer: the record named in `ANSWERS`, or a `Fault`.
An *event* goes from tether to the appliance and gets none.

Sessions are numbered by the appliance: 0 is the primary one, higher numbers are execs.  The streams of a session
follow from its number (`stdin_of` and so on), so nothing has to be agreed first.
"""

from tether.link.record import Record
from tether.spec import Process, Spec

PRIMARY = 0  # the session that the spec describes
CONTROL_STREAM = 0  # carries the messages of this module
LOG_STREAM = 1  # tether's own log, guest to host
FIRST_SESSION_STREAM = 16  # below: reserved
STREAMS_PER_SESSION = 4


def stdin_of(session: int) -> int:
    """Stream number of a session's standard input (host to guest)."""
    return FIRST_SESSION_STREAM + STREAMS_PER_SESSION * session


def stdout_of(session: int) -> int:
    """Stream number of a session's standard output, or of its terminal (guest to host)."""
    return stdin_of(session) + 1


def stderr_of(session: int) -> int:
    """Stream number of a session's standard error (guest to host); never used with a terminal."""
    return stdin_of(session) + 2


class Phase(Record):
    """How long a step took: name, start in microseconds since the kernel started, duration in microseconds."""

    name: str
    start_us: int
    took_us: int


class Fault(Record):
    """Why a request failed.

    `step` is what was being done, `object` with what, `errno` the symbolic name ("ENOENT") or "", `text` the cause in
    words, `hint` what to do about it.  `maybe_done` is true where the thing may have happened all the same.
    """

    step: str
    object: str
    text: str
    errno: str = ""
    hint: str = ""
    maybe_done: bool = False


# requests and their answers


class Start(Record):
    """Become this container: find the disks, stack the root, configure the network, start the primary session."""

    spec: Spec


class Exec(Record):
    """Start another session in the running container.

    A `detached` one has /dev/null for its standard streams; Ended tells its end as that of any other.
    """

    session: int
    process: Process
    detached: bool = False


class Started(Record):
    """Answer to Start and Exec: the process has been executed (a failed execve is a Fault, never a Started)."""

    pid: int
    phases: tuple[Phase, ...] = ()
    resident_kib: int = 0  # of tether itself


class Signal(Record):
    """Send a signal to a session's first process, or to the whole of its process group."""

    session: int
    number: int
    group: bool = False


class Resize(Record):
    """The size of a session's terminal has changed."""

    session: int
    rows: int
    columns: int


class Shutdown(Record):
    """End every process (the stop signal first, SIGKILL after `grace_ms`), sync, unmount, power off."""

    grace_ms: int = 0
    reason: str = ""


class Ping(Record):
    """Is anybody there?  Answered with the guest's clocks."""


class Pong(Record):
    """Answer to Ping."""

    monotonic_ns: int
    realtime_ns: int


class Done(Record):
    """Answer to requests that have nothing to tell."""


# events


class Ready(Record):
    """tether is up and waits for its spec."""

    version: str
    kernel: str
    phases: tuple[Phase, ...] = ()


class Exited(Record):
    """State of a session that ended by itself: wait status WEXITSTATUS."""

    code: int


class Signalled(Record):
    """State of a session that a signal ended: WTERMSIG and WCOREDUMP."""

    number: int
    core: bool = False


class Ended(Record):
    """A session's first process is gone; its output streams end by themselves."""

    session: int
    state: Exited | Signalled
    oom_killed: bool = False


class Goodbye(Record):
    """The VM powers off now, and why."""

    reason: str
    fault: Fault | None = None


REQUESTS: dict[str, type[Record]] = {
    cls.__name__: cls for cls in (Start, Exec, Signal, Resize, Shutdown, Ping)
}
ANSWERS: dict[str, type[Record]] = {
    "Start": Started,
    "Exec": Started,
    "Signal": Done,
    "Resize": Done,
    "Shutdown": Done,
    "Ping": Pong,
}
EVENTS: dict[str, type[Record]] = {cls.__name__: cls for cls in (Ready, Ended, Goodbye)}
