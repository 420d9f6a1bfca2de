"""The agent: answers what the appliance asks, runs sessions, and tells how they end.

One loop, nothing in it blocks: the link, the pipes of the sessions and the signals of PID 1 are all descriptors.
"""

import os
import time

from tether import __version__
from tether.execute import Place
from tether.faults import TetherError, fault_of
from tether.link.endpoint import Endpoint
from tether.link.events import Aborted, Readable, Requested, Stopped, Writable
from tether.link.hello import TETHER
from tether.link.messages import (
    FIRST_SESSION_STREAM,
    PRIMARY,
    STREAMS_PER_SESSION,
    Done,
    Ended,
    Exec,
    Fault,
    Goodbye,
    Phase,
    Ping,
    Pong,
    Ready,
    Resize,
    Shutdown,
    Signal,
    Signalled,
    Start,
    Started,
)
from tether.link.reactor import Reactor
from tether.link.record import Record
from tether.link.wire import Wire
from tether.memory import collect_from_now_on, oom_kills, resident_kib
from tether.pid1 import CHILD, STOPPING, kernel_release
from tether.reaper import Reaper
from tether.session import Running, Session
from tether.spec import Process, Terminal
from tether.steps import StepFailed, Steps, now_us

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable

    from tether.container import Container
    from tether.hostlink import FixedLine
    from tether.link.events import Event
    from tether.vsockline import VsockLine
    from tether.worker import Worker
else:
    import _signal

KILL_S = 10.0  # for processes to die and their output to be read, after SIGKILL; the host's own deadline is longer
FAREWELL_S = 3.0  # for the last messages to reach the appliance, if it is there at all
KILLED = _signal.SIGKILL
MAX_SESSION = 1 << 24  # so that the numbers of its streams fit into a frame, whatever else may be numbered there
EVERYBODY = -1  # kill(2): all processes but PID 1
SIGNAL_BYTES = 4096


class Agent:
    """See the module.  `stopping` is None until somebody wants the VM to end."""

    def __init__(self, line: "FixedLine | VsockLine", arrived: int, steps: Steps) -> None:
        self.reactor, self.steps = Reactor(), steps
        self.endpoint = Endpoint(TETHER, line.limits, software=f"tether {__version__}")
        self.wire = Wire(self.reactor, self.endpoint, self._take, line.lost)
        self.stopping: Shutdown | None = None
        self.failure: Fault | None = None
        self._start: tuple[int, Start] | None = None  # the Start that was asked for, and its request
        self._place: Place | None = None
        self.container: Container | None = None  # what the spec describes, as soon as that is checked
        self.reaper = Reaper()
        self.workers: dict[int, Worker] = {}  # children that move files, by the session number whose streams they use
        self._sessions: dict[int, Session] = {}
        self._waiting: dict[int, tuple[int, int]] = {}  # sessions asked for -> request to answer, when (us)
        self._kills_before: dict[int, int] = {}  # session -> count of OOM kills when it began
        self._ended: set[int] = set()  # sessions whose Ended was sent
        self._arrived = arrived
        self.reactor.watch(arrived, self._signals_arrived)
        self._requests: dict[type[Record], Callable[[int, Record], None]] = {
            Start: self._take_start,
            Exec: self._take_exec,
            Signal: self._take_signal,
            Resize: self._take_resize,
            Shutdown: self._take_shutdown,
            Ping: self._take_ping,
        }
        line.serve(self.wire)

    # the phases of its life

    def say_hello(self) -> None:
        """Tells the appliance, as soon as it is there, that this VM is up."""
        self.endpoint.notify(Ready(version=__version__, kernel=kernel_release(), phases=self.steps.taken()))

    def wait_for_start(self) -> Start | None:
        """Serves until a Start comes; None if the VM is to end instead."""
        self._run(lambda: self._start is not None or self.stopping is not None)
        return self._start[1] if self._start and not self.stopping else None

    def start_primary(self, place: Place, process: Process) -> None:
        """Starts the primary session and serves until its program runs.  Raises StepFailed if it does not."""
        assert self._start is not None
        self._place = place
        try:
            self._begin(PRIMARY, self._start[0], process)
        except OSError as error:
            raise StepFailed(fault_of("start session", error)) from error
        self._run(lambda: PRIMARY not in self._waiting)
        if self.failure is not None:
            raise StepFailed(self.failure)
        collect_from_now_on()

    def serve(self) -> Shutdown:
        """Serves until the VM is to end."""
        self._run(lambda: self.stopping is not None)
        assert self.stopping is not None
        return self.stopping

    def stop_sessions(self, stop_signal: int, grace_ms: int) -> None:
        """Ends every process: the primary one may end by itself within the grace, the rest is killed."""
        primary = self._sessions.get(PRIMARY)
        if primary is not None and isinstance(primary.state, Running) and grace_ms > 0:
            primary.signal(stop_signal)
            self._run(lambda: primary.over, grace_ms / 1000)
        kill_everybody()
        self._run(lambda: self.reaper.childless and all(item.drained for item in self._sessions.values()), KILL_S)

    def abandon(self, fault: Fault) -> None:
        """Something has failed: answers the Start that was not done (not one that was answered), ends every process."""
        if self._start is not None and PRIMARY not in self._sessions:
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
            user = self._sessions.get(number) or self.workers.get(number)
            if user is not None:
                user.stream_is_ready(event.stream)

    def _signals_arrived(self, _ready: int) -> None:
        numbers = os.read(self._arrived, SIGNAL_BYTES)
        for number in STOPPING:
            if number in numbers:
                self.stopping = self.stopping or Shutdown(grace_ms=10000, reason=_signal.strsignal(number) or "signal")
        if CHILD in numbers:
            self._reap()

    def _reap(self) -> None:
        if self.reaper.collect():
            self.reactor.soon(self._reap)  # there may be more: after the others have had their turn
        self._settle()

    # requests

    def _requested(self, id: int, message: Record) -> None:
        """Every request gets an answer; what goes wrong with it is one."""
        try:
            take = self._requests.get(type(message))
            if take is None:
                from tether.late import take_late

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
        _ = self.place
        self.check_number(message.session)
        self._begin(message.session, id, message.process)

    def _take_signal(self, id: int, message: Record) -> None:
        assert isinstance(message, Signal)
        self._session(message.session).signal(message.number)
        self.endpoint.answer(id, Done())

    def _take_resize(self, id: int, message: Record) -> None:
        assert isinstance(message, Resize)
        self._session(message.session).resize(Terminal(rows=message.rows, columns=message.columns))
        self.endpoint.answer(id, Done())

    def _take_shutdown(self, id: int, message: Record) -> None:
        assert isinstance(message, Shutdown)
        self.endpoint.answer(id, Done())
        self.stopping = self.stopping or message

    def _take_ping(self, id: int, _message: Record) -> None:
        self.endpoint.answer(id, Pong(monotonic_ns=time.monotonic_ns(), realtime_ns=time.time_ns()))

    # sessions

    @property
    def place(self) -> Place:
        """Where processes start.  Raises TetherError if the container does not run (any more, or yet)."""
        if self._place is None or PRIMARY in self._waiting or self._sessions[PRIMARY].over:
            raise TetherError("container", "is not running")
        return self._place

    def check_number(self, number: int) -> None:
        """Raises TetherError if this is no number for an exec or a transfer of files, or is taken."""
        if number in self._sessions or number in self.workers or not PRIMARY < number <= MAX_SESSION:
            raise TetherError(f"session {number}", "is taken, or no number for an exec",
                              hint=f"give every exec a number of its own, from 1 to {MAX_SESSION}")

    def _session(self, number: int) -> Session:
        if number not in self._sessions:
            raise TetherError(f"session {number}", "does not exist")
        return self._sessions[number]

    def _begin(self, number: int, request: int, process: Process) -> None:
        assert self._place is not None
        session = Session(number, self._session_started, self._session_changed)
        self._kills_before[number] = oom_kills()
        began = now_us()
        session.start(self.reactor, self.endpoint, self.reaper, self._place, process)
        self._sessions[number], self._waiting[number] = session, (request, began)

    def _session_started(self, session: Session, fault: Fault | None) -> None:
        request, began = self._waiting.pop(session.number)
        if isinstance(session.state, Running):
            phases = (*self.steps.taken(), Phase(name="start session", start_us=began, took_us=now_us() - began))
            self.endpoint.answer(request, Started(pid=session.state.pid, phases=phases, resident_kib=resident_kib()))
        if fault is None:
            return
        self.endpoint.answer(request, fault)
        if session.number == PRIMARY:
            self.failure = fault
        else:
            self._forget(session)

    def _session_changed(self, session: Session) -> None:
        """A process is gone, or its output complete.  With the primary one everything ends."""
        if session.number == PRIMARY and not self.reaper.childless:
            kill_everybody()
        self._settle()

    def _settle(self) -> None:
        """Tells the end of the sessions that have come to it.

        The primary session's comes when no process is left and all it wrote is on its way; an exec's as soon as its
        process is gone, because what it left in the background may hold its output open for ever.
        """
        for session in list(self._sessions.values()):
            if session.over and session.number not in self._waiting:
                if session.number != PRIMARY:
                    self._tell_end(session)
                    if session.drained:
                        self._forget(session)
                elif self.reaper.childless and session.drained:
                    self._tell_end(session)

    def _tell_end(self, session: Session) -> None:
        state = session.end_state
        if state is None or session.number in self._ended:
            return
        self._ended.add(session.number)
        killed = isinstance(state, Signalled) and state.number == KILLED
        grew = oom_kills() > self._kills_before[session.number]
        self.endpoint.notify(Ended(session=session.number, state=state,
                                   oom_killed=grew and (killed or session.number == PRIMARY)))

    def _forget(self, session: Session) -> None:
        """An exec leaves nothing behind; its number may be used again."""
        for record in (self._sessions, self._kills_before):
            record.pop(session.number, None)
        self._ended.discard(session.number)


def kill_everybody() -> None:
    """SIGKILL to every process but PID 1.  The kernel does it in one go: no fork bomb is faster."""
    try:
        os.kill(EVERYBODY, KILLED)
    except ProcessLookupError:
        return  # there is none
