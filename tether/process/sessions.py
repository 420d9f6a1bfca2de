"""All sessions of the container: begins them, reaps them, tells how they end, and starts the primary one again.

The end of the primary session comes when no process is left and all it wrote is on its way.  The end of an exec is told
as soon as its process is gone; what it left in the background may hold its output open for ever, so that output is cut
off after a moment.
"""

import os

from tether.faults import TetherError, fault_of, one_line
from tether.kernel.console import say
from tether.kernel.memory import OomCounter, resident_kib
from tether.link.messages import PRIMARY, Ended, Exited, Fault, Phase, Signalled, Started
from tether.process.execute import Place
from tether.process.reaper import Reaper
from tether.process.session import Running, Session
from tether.rootfs.furnish import take_console
from tether.spec import Process
from tether.steps import now_us

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal

    from tether.link.endpoint import Endpoint
    from tether.link.reactor import Reactor, Timer
    from tether.process.health import Monitor
    from tether.process.restarts import Restarts
    from tether.steps import Steps
else:
    import _signal

KILLED = _signal.SIGKILL
EVERYBODY = -1  # kill(2): all processes but PID 1
LAST_OUTPUT_S = 2.0  # for what an exec left in the background to be written; dockerd waits as long
NOT_EXECUTED = Exited(code=127)  # how a container ends that could not be started again, as in Docker


class Sessions:
    """See the module.  `failure` is set when the primary process could not be started the first time."""

    def __init__(self, reactor: "Reactor", endpoint: "Endpoint", steps: "Steps") -> None:
        self.reaper = Reaper()
        self.failure: Fault | None = None
        self.health: Monitor | None = None
        self.restarts: Restarts | None = None
        self._reactor, self._endpoint, self._steps = reactor, endpoint, steps
        self._oom: OomCounter | None = None  # from the first start on
        self._place: Place | None = None
        self._process: Process | None = None
        self._sessions: dict[int, Session] = {}
        self._waiting: dict[int, tuple[int | None, int]] = {}  # sessions begun -> request to answer, when (us)
        self._kills_before: dict[int, int] = {}  # session -> count of OOM kills when it began
        self._ended: set[int] = set()  # sessions whose Ended was sent
        self._again: Timer | None = None  # until the primary process is started again

    # from the agent

    def begin_primary(self, place: Place, process: Process, request: int) -> None:
        """Starts the primary session.  Raises TetherError or OSError if there is not even a child."""
        self._place, self._process = place, process
        self._begin(PRIMARY, request, process)

    def begin_exec(self, number: int, request: int, process: Process, detached: bool) -> None:
        """Starts another one.  Raises TetherError or OSError, at last if there is not even a child."""
        _ = self.place
        self._begin(number, request, process, detached)

    @property
    def place(self) -> Place:
        """Where processes start.  Raises TetherError if the container does not run (any more, or yet)."""
        if self._place is None or self.starting or self._sessions[PRIMARY].over:
            raise TetherError("container", "is restarting" if self._again else "is not running")
        return self._place

    def __getitem__(self, number: int) -> Session:
        """The session of this number.  Raises TetherError if there is none."""
        if number not in self._sessions:
            raise TetherError(f"session {number}", "does not exist")
        return self._sessions[number]

    def find(self, number: int) -> Session | None:
        """The session of this number, if there is one."""
        return self._sessions.get(number)

    @property
    def primary_began(self) -> bool:
        """The primary session exists, whatever has become of it."""
        return PRIMARY in self._sessions

    @property
    def starting(self) -> bool:
        """Nobody knows yet whether the primary process runs."""
        return PRIMARY in self._waiting

    @property
    def gone(self) -> bool:
        """No process is left, and all output has been read."""
        return self.reaper.childless and all(item.drained for item in self._sessions.values())

    def stop_restarting(self) -> None:
        """The next end of the primary process, or the last one if it waits to be started again, is the end."""
        self._no_more_restarts()
        if self._again is not None:
            self._again.cancel()
            self._again = None
            self._settle()

    def reap(self) -> None:
        """A child has ended."""
        if self.reaper.collect():
            self._reactor.soon(self.reap)  # there may be more: after the others have had their turn
        self._settle()

    # beginning

    def _begin(self, number: int, request: int | None, process: Process, detached: bool = False) -> None:
        assert self._place is not None
        kept = number == PRIMARY and self.restarts is not None
        session = Session(number, self._started, self._changed, kept)
        kills, began = self._oom_kills(), now_us()
        session.start(self._reactor, self._endpoint, self.reaper, self._place, process,
                      detached=detached)
        self._kills_before[number], self._waiting[number] = kills, (request, began)
        self._sessions[number] = session

    def _started(self, session: Session, fault: Fault | None) -> None:
        request, began = self._waiting.pop(session.number)
        if session.number == PRIMARY and fault is None and self.health is not None:
            self.health.begin()
        if request is None:
            if fault is not None:
                self._give_up(session, fault)
        elif fault is not None:
            self._endpoint.answer(request, fault)
            if session.number == PRIMARY:
                self.failure = fault
            else:
                self._forget(session)
        elif isinstance(session.state, Running):
            phases = (*self._steps.taken(), Phase(name="start session", start_us=began, took_us=now_us() - began))
            resident = resident_kib() if session.number == PRIMARY else 0  # nobody wants to know it at each exec
            answer = Started(pid=session.state.pid, phases=phases, resident_kib=resident)
            self._endpoint.answer(request, answer)

    def _start_again(self) -> None:
        """The primary process once more, with the streams that it had."""
        self._again = None
        assert self._process is not None
        assert self._place is not None
        try:
            if self._process.terminal is not None:
                take_console(self._place.root)
            self._begin(PRIMARY, None, self._process)
        except (TetherError, OSError) as error:
            self._give_up(self._sessions[PRIMARY], fault_of("start session", error))

    def _no_more_restarts(self) -> None:
        """What is still to be told of them goes before the end."""
        if self.restarts is not None:
            self.restarts.over()
            self.restarts = None

    def _give_up(self, session: Session, fault: Fault) -> None:
        """The primary process could not be started again."""
        say(one_line(fault))
        self._no_more_restarts()
        session.state = NOT_EXECUTED
        self._settle()

    # ending

    def _changed(self, session: Session) -> None:
        """A process is gone, or its output complete.  With the primary one everything ends."""
        if session.number == PRIMARY:
            if self.health is not None:
                self.health.end()
            if not self.reaper.childless:
                kill_everybody()
        self._settle()

    def _settle(self) -> None:
        """Tells the end of the sessions that have come to it."""
        for session in list(self._sessions.values()):
            if not session.over or session.number in self._waiting:
                continue
            if session.number != PRIMARY:
                self._exec_over(session)
            elif self.reaper.childless and session.drained and session.number not in self._ended:
                self._primary_over(session)

    def _exec_over(self, session: Session) -> None:
        if session.number not in self._ended:
            self._tell_end(session)
            if not session.drained:
                self._reactor.call_later(LAST_OUTPUT_S, session.cut_output)
        if session.drained:
            self._forget(session)

    def _primary_over(self, session: Session) -> None:
        if self._again is not None:
            return
        if self.restarts is not None and session.end_state is not None:
            ran_s = (now_us() - session.began_us) / 1e6
            told = self.restarts.after(session.end_state, ran_s, self._oom_killed(session))
            if told is not None:
                self.restarts.tell(told)
                self._again = self._reactor.call_later(told.after_ms / 1000, self._start_again)
                return
        self._no_more_restarts()
        session.finish_output()
        self._tell_end(session)

    def _tell_end(self, session: Session) -> None:
        if session.end_state is None:
            return
        self._ended.add(session.number)
        self._endpoint.notify(Ended(session=session.number, state=session.end_state,
                                    oom_killed=self._oom_killed(session)))

    def _oom_killed(self, session: Session) -> bool:
        state = session.end_state
        killed = isinstance(state, Signalled) and state.number == KILLED
        suspect = killed or session.number == PRIMARY  # of nobody else it is asked: that costs half of a start
        return suspect and self._oom_kills() > self._kills_before[session.number]

    def _oom_kills(self) -> int:
        self._oom = self._oom or OomCounter()
        return self._oom.count()

    def _forget(self, session: Session) -> None:
        """An exec leaves nothing behind; its number may be used again."""
        session.let_go()
        for record in (self._sessions, self._kills_before):
            record.pop(session.number, None)
        self._ended.discard(session.number)


def kill_everybody() -> None:
    """SIGKILL to every process but PID 1.  The kernel does it in one go: no fork bomb is faster."""
    try:
        os.kill(EVERYBODY, KILLED)
    except ProcessLookupError:
        return  # there is none
