"""Health checks: a program that is run again and again in the container says whether it works, as in Docker.

    begin ──► starting ──► healthy ◄──► unhealthy        (moby, daemon/health.go)

Everything is timed by the monotonic clock of the reactor, so that a clock that is set does not hurry or delay a check;
the times that are told are those of the day.  Imported when a spec has a check.
"""

import os
import time

from tether.faults import TetherError, fault_of, one_line
from tether.link.late_messages import HEALTHY, STARTING, UNHEALTHY, Health, Probe
from tether.link.messages import Fault
from tether.process.execute import Place, spawn
from tether.process.report import read_report
from tether.process.session import state_of
from tether.spec import HealthCheck, Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable

    from tether.link.reactor import Reactor, Timer, Watch
    from tether.process.execute import Child
    from tether.process.reaper import Reaper
    from tether.process.told import LatestEvent
else:
    import _signal

KEPT = 5  # results; Docker keeps as many
MAX_OUTPUT = 4096  # bytes kept of what a check writes
READ_AT_ONCE = 65536
NO_CODE = -1  # of a check that took too long, or could not be run
GRACE_S = 0.5  # for output to be read after the check has ended: what it left in the background may hold it open


class Verdict:
    """What the results so far mean.  Pure: it knows no clock and no process."""

    def __init__(self, check: HealthCheck) -> None:
        self._check = check
        self.status, self.failures = STARTING, 0
        self.log: tuple[Probe, ...] = ()

    def take(self, result: Probe, since_start_ms: int) -> None:
        """A check that began `since_start_ms` after the container has given a result."""
        self.log = (*self.log, result)[-KEPT:]
        if result.code == 0:
            self.status, self.failures = HEALTHY, 0
        elif self.status != STARTING or since_start_ms >= self._check.start_period_ms:
            self.failures += 1
            if self.failures >= self._check.retries:
                self.status = UNHEALTHY

    def next_ms(self, since_start_ms: int) -> int:
        """How long to wait for the next check: they come closer together while the container starts."""
        starting = self.status == STARTING and since_start_ms < self._check.start_period_ms
        return min(self._check.start_interval_ms, self._check.interval_ms) if starting else self._check.interval_ms

    def event(self) -> Health:
        """What the appliance is told."""
        return Health(status=self.status, failures=self.failures, log=self.log)


class Monitor:
    """Runs the check from `begin` to `end`."""

    def __init__(self, reactor: "Reactor", reaper: "Reaper", place: Place, process: Process, *,
                 check: HealthCheck, events: "LatestEvent") -> None:
        self._reactor, self._events, self._reaper = reactor, events, reaper
        self._place, self._process, self._check = place, process, check
        self._verdict = Verdict(check)
        self._began = 0.0
        self._timer: Timer | None = None
        self._run: Run | None = None

    def begin(self) -> None:
        """The container runs."""
        self._verdict, self._began = Verdict(self._check), time.monotonic()
        self._events.tell(self._verdict.event())
        self._wait()

    def end(self) -> None:
        """The container does not run any more.  A second call does nothing."""
        if self._timer is not None:
            self._timer.cancel()
        if self._run is not None:
            self._run.forget()
        self._timer = self._run = None

    def _since_start_ms(self) -> int:
        return int((time.monotonic() - self._began) * 1000)

    def _wait(self) -> None:
        self._timer = self._reactor.call_later(self._verdict.next_ms(self._since_start_ms()) / 1000, self._check_now)

    def _check_now(self) -> None:
        began_ms = self._since_start_ms()

        def done(result: Probe) -> None:
            self._run = None
            self._verdict.take(result, began_ms)
            self._events.tell(self._verdict.event())
            self._wait()

        self._timer = None
        self._run = Run(self._reactor, self._check.timeout_ms, done)
        self._run.start(self._reaper, self._place, self._process)


class Run:
    """One check, from its start to its result, given to `done`."""

    def __init__(self, reactor: "Reactor", timeout_ms: int, done: "Callable[[Probe], None]") -> None:
        self._reactor, self._timeout_ms = reactor, timeout_ms
        self._done: Callable[[Probe], None] | None = done
        self._start_ns = time.time_ns()
        self._output = b""
        self._watches: dict[int, Watch] = {}
        self._timers: list[Timer] = []
        self._status: int | None = None
        self._pid = 0
        self._late = False

    def start(self, reaper: "Reaper", place: Place, process: Process) -> None:
        """Forks."""
        try:
            child = spawn(place, process, primary=False)
        except (TetherError, OSError) as error:
            self._finish(NO_CODE, fault_of("health check", error))
            return
        self._pid = child.pid
        reaper.expect(child.pid, self._exited)
        self._watch(child, reaper)
        self._timers.append(self._reactor.call_later(self._timeout_ms / 1000, self._too_late))

    def forget(self) -> None:
        """Nobody wants the result any more; the process is killed by whoever ends the container."""
        self._done = None
        self._let_go()

    def _watch(self, child: "Child", reaper: "Reaper") -> None:
        def reported(_ready: int) -> None:
            self._watches.pop(child.report).close()
            fault = read_report(child.report)
            if fault is not None:
                reaper.forget(child.pid)
                self._finish(NO_CODE, fault)

        if child.report >= 0:
            self._watches[child.report] = self._reactor.watch(child.report, reported)
        for handle in (child.stdout, child.stderr):
            self._watches[handle] = self._reactor.watch(handle, self._reader(handle))

    def _reader(self, handle: int) -> "Callable[[int], None]":
        return lambda _ready: self._read(handle)

    def _read(self, handle: int) -> None:
        try:
            data = os.read(handle, READ_AT_ONCE)
        except BlockingIOError:
            return
        if data:
            self._output = (self._output + data)[:MAX_OUTPUT]
            return
        self._watches.pop(handle).close()
        os.close(handle)
        self._settle()

    def _too_late(self) -> None:
        self._late = True
        if self._status is None:  # the number is ours until the reaper has collected it
            try:
                os.killpg(self._pid, _signal.SIGKILL)
            except ProcessLookupError:
                os.kill(self._pid, _signal.SIGKILL)  # so early that it leads no group yet
        self._timers.append(self._reactor.call_later(GRACE_S, self._conclude))

    def _exited(self, status: int) -> None:
        self._status = status
        if self._done is not None:
            self._timers.append(self._reactor.call_later(GRACE_S, self._conclude))
            self._settle()

    def _settle(self) -> None:
        if self._status is not None and not self._watches:
            self._conclude()

    def _conclude(self) -> None:
        if self._late or self._status is None:
            self._finish(NO_CODE, Fault(step="health check", object="",
                                        text=f"exceeded its time of {self._timeout_ms} ms"))
        else:
            state = state_of(self._status)
            self._finish(getattr(state, "code", 128 + getattr(state, "number", 0)), None)

    def _finish(self, code: int, fault: "Fault | None") -> None:
        done, self._done = self._done, None
        self._let_go()
        if done is not None:
            output = self._output if fault is None else self._output + one_line(fault).encode()
            done(Probe(start_ns=self._start_ns, end_ns=time.time_ns(), code=code, output=output[:MAX_OUTPUT]))

    def _let_go(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for handle, watch in self._watches.items():
            watch.close()
            os.close(handle)
        self._watches.clear()
