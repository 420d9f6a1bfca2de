"""The agent: answers what the appliance asks, runs sessions, and tells how they end.

One loop, nothing in it blocks: the link, the pipes of the sessions and the signals of PID 1 are all descriptors.
"""

import os
import time

from tether import __version__
from tether.faults import TetherError, fault_of
from tether.kernel.memory import collect_from_now_on
from tether.kernel.pid1 import CHILD, STOPPING, kernel_release
from tether.link.endpoint import Endpoint
from tether.link.events import Aborted, Readable, Requested, Stopped, Writable
from tether.link.hello import TETHER
from tether.link.messages import (
    FIRST_SESSION_STREAM,
    PRIMARY,
    STREAMS_PER_SESSION,
    Done,
    Exec,
    Fault,
    Goodbye,
    Ping,
    Pong,
    Ready,
    Resize,
    Shutdown,
    Signal,
    Start,
)
from tether.link.reactor import Reactor
from tether.link.record import Record
from tether.link.wire import Wire
from tether.process.execute import Place
from tether.process.session import Running
from tether.process.sessions import Sessions, kill_everybody
from tether.spec import Spec, Terminal
from tether.steps import StepFailed, Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable

    from tether.container import Container
    from tether.hostlink import FixedLine
    from tether.link.events import Event
    from tether.requests.log import Log
    from tether.requests.memorywatch import MemoryWatch
    from tether.requests.worker import Worker
    from tether.vsockline import VsockLine
else:
    import _signal

GRACE_MS = 10000  # between stop signal and SIGKILL, where nobody says how long: Docker's
KILL_S = 10.0  # for processes to die and their output to be read, after SIGKILL; the host's own deadline is longer
FAREWELL_S = 3.0  # for the last messages to reach the appliance, if it is there at all
# Whoever sends one of these to the container wants it to end, and not to be started again.  PIPE: nobody reads it.
ENDING = (_signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM, _signal.SIGKILL, _signal.SIGPIPE)
MAX_SESSION = 1 << 24  # so that the numbers of its streams fit into a frame, whatever else may be numbered there
SIGNAL_BYTES = 4096


class Agent:
    """See the module.  `stopping` is None until somebody wants the VM to end."""

    def __init__(self, line: "FixedLine | VsockLine", arrived: int, steps: Steps) -> None:
        self.reactor, self.steps = Reactor(), steps
        self.endpoint = Endpoint(TETHER, line.limits, software=f"tether {__version__}")
        self.wire = Wire(self.reactor, self.endpoint, self._take, line.lost)
        self.stopping: Shutdown | None = None
        self._start: tuple[int, Start] | None = None  # the Start that was asked for, and its request
        self.container: Container | None = None  # what the spec describes, as soon as that is checked
        self._sessions = Sessions(self.reactor, self.endpoint, steps)
        self.reaper = self._sessions.reaper
        self.log: Log | None = None  # once somebody has asked for it
        self.memory_watch: MemoryWatch | None = None
        self.workers: dict[int, Worker] = {}  # children that move files, by the session number whose streams they use
        self._line, self._arrived = line, arrived
        self.reactor.watch(arrived, self._signals_arrived)
        self._requests: dict[type[Record], Callable[[int, Record], None]] = {
            Start: self._take_start,
            Exec: self._take_exec,
            Signal: self._take_signal,
            Resize: self._take_resize,
            Shutdown: self._take_shutdown,
            Ping: self._take_ping,
        }

    # the phases of its life

    def connect(self) -> None:
        """From now on it has a link, whenever the other end is there."""
        self._line.serve(self.wire)

    def say_hello(self) -> None:
        """Tells the appliance, as soon as it is there, that this VM is up."""
        self.endpoint.notify(Ready(version=__version__, kernel=kernel_release(), phases=self.steps.taken()))

    def wait_for_start(self) -> Start | None:
        """Serves until a Start comes; None if the VM is to end instead."""
        self._run(lambda: self._start is not None or self.stopping is not None)
        return self._start[1] if self._start and not self.stopping else None

    def start_primary(self, place: Place, spec: Spec) -> None:
        """Starts the primary session and serves until its program runs.  Raises StepFailed if it does not."""
        assert self._start is not None
        sessions = self._sessions
        if spec.health is not None or spec.restart is not None:
            from tether.process.supervise import supervise  # few ask for it

            supervise(self.reactor, self.endpoint, sessions, place, spec)
        try:
            sessions.begin_primary(place, spec.process, self._start[0])
        except (TetherError, OSError) as error:
            raise StepFailed(fault_of("start session", error)) from error
        self._run(lambda: not sessions.starting)
        if sessions.failure is not None:
            raise StepFailed(sessions.failure)
        collect_from_now_on()

    def serve(self) -> Shutdown:
        """Serves until the VM is to end."""
        self._run(lambda: self.stopping is not None)
        assert self.stopping is not None
        return self.stopping

    def stop_sessions(self, stop_signal: int, grace_ms: int) -> None:
        """Ends every process: the primary one may end by itself within the grace, the rest is killed."""
        self._sessions.stop_restarting()
        if self.container is not None and self.container.hold is not None:
            self.container.hold.release()  # who waits for a frozen disk cannot even be killed
        primary = self._sessions.find(PRIMARY)
        if primary is not None and isinstance(primary.state, Running) and grace_ms > 0:
            primary.signal(stop_signal)
            self._run(lambda: primary.over, grace_ms / 1000)
        kill_everybody()
        self._run(lambda: self._sessions.gone, KILL_S)

    def abandon(self, fault: Fault) -> None:
        """Something has failed: answers the Start that was not done (not one that was answered), ends every process."""
        if self._start is not None and not self._sessions.primary_began:
            self.endpoint.answer(self._start[0], fault)
        self.stop_sessions(0, 0)

    def farewell(self, reason: str, fault: Fault | None) -> bool:
        """Says why the VM ends, and waits a little for the appliance to have it; whether it has."""
        self.endpoint.notify(Goodbye(reason=reason, fault=fault))
        if not self.wire.flush(FAREWELL_S):
            return False
        self.endpoint.leave(reason)
        self.reactor.run_once(0)
        return True

    # the loop

    def _run(self, until: "Callable[[], bool]", seconds: float | None = None) -> None:
        """Serves until `until` is true, or for `seconds`."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not until():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            self.reactor.run_once(left)

    def _take(self, event: "Event") -> None:
        """Something has happened on the link."""
        if isinstance(event, Requested):
            self._requested(event.id, event.message)
        elif isinstance(event, (Readable, Writable, Stopped, Aborted)):
            number = (event.stream - FIRST_SESSION_STREAM) // STREAMS_PER_SESSION
            user = self._sessions.find(number) or self.workers.get(number)
            if user is not None:
                user.stream_is_ready(event.stream)

    def _signals_arrived(self, _ready: int) -> None:
        numbers = os.read(self._arrived, SIGNAL_BYTES)
        for number, reason in STOPPING.items():
            if number in numbers:
                self.stop(reason)
        if CHILD in numbers:
            self._sessions.reap()

    def stop(self, reason: str) -> None:
        """Somebody other than the appliance wants the VM to end, in good order."""
        self.stopping = self.stopping or Shutdown(grace_ms=GRACE_MS, reason=reason)

    # requests

    def _requested(self, id: int, message: Record) -> None:
        """Every request gets an answer; what goes wrong with it is one."""
        if self.log is not None:
            self.log.write(0, f"request {id}: {type(message).__name__}")
        try:
            take = self._requests.get(type(message))
            if take is None:
                from tether.requests.late import take_late

                take_late(self, id, message)
            else:
                take(id, message)
        except (TetherError, OSError) as error:
            self.endpoint.answer(id, fault_of(type(message).__name__.lower(), error))

    def _take_start(self, id: int, message: Record) -> None:
        assert isinstance(message, Start)
        if self._start is not None:
            raise TetherError("container", "has been started already", hint="a VM runs one container")
        self._start = (id, message)

    def _take_exec(self, id: int, message: Record) -> None:
        assert isinstance(message, Exec)
        self.check_number(message.session)
        self._sessions.begin_exec(message.session, id, message.process, message.detached)

    def _take_signal(self, id: int, message: Record) -> None:
        assert isinstance(message, Signal)
        if message.session == PRIMARY and message.number in ENDING:
            self._sessions.stop_restarting()
        self._sessions[message.session].signal(message.number, message.group)
        self.endpoint.answer(id, Done())

    def _take_resize(self, id: int, message: Record) -> None:
        assert isinstance(message, Resize)
        self._sessions[message.session].resize(Terminal(rows=message.rows, columns=message.columns))
        self.endpoint.answer(id, Done())

    def _take_shutdown(self, id: int, message: Record) -> None:
        assert isinstance(message, Shutdown)
        self.endpoint.answer(id, Done())
        self.stopping = self.stopping or message

    def _take_ping(self, id: int, _message: Record) -> None:
        self.endpoint.answer(id, Pong(monotonic_ns=time.monotonic_ns(), realtime_ns=time.time_ns()))

    # for workers

    @property
    def place(self) -> Place:
        """Where processes start.  Raises TetherError if the container does not run (any more, or yet)."""
        return self._sessions.place

    def check_number(self, number: int) -> None:
        """Raises TetherError if this is no number for an exec or a transfer of files, or is taken."""
        if number in self.workers or self._sessions.find(number) or not PRIMARY < number <= MAX_SESSION:
            raise TetherError(f"session {number}", "is taken, or no number for an exec",
                              hint=f"give every exec a number of its own, from 1 to {MAX_SESSION}")
