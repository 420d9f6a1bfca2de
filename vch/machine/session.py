"""A process in a machine, as the host sees it: its streams, its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tether.link.late_messages import Health, Restarting
from tether.link.messages import PRIMARY, Ended, Exited, Resize, Signal, stderr_of, stdin_of, stdout_of
from vch.machine.pumps import InputPump, OutputPump
from vch.machine.sinks import Sink, SinkClosedError, open_sink
from vch.options.values import parse_signal
from vch.promise import Promise

if TYPE_CHECKING:
    from tether.link.record import Record
    from vch.machine.driver import Driver

SIGNAL_BASE = 128  # exit code of what a signal ended: shells' and Docker's 128 + number
SIGPIPE = 13


class Stdio(NamedTuple):
    """Where a session's standard streams lead: file descriptors or sinks.  None: no input, output thrown away.

    `streams` False: the guest has no such streams either.
    """

    stdin: int | None = None
    stdout: int | Sink | None = None
    stderr: int | Sink | None = None
    streams: bool = True


class Session:
    """One process.  Its methods may be called from any thread but the I/O thread; those named `_loop_*` only there."""

    def __init__(self, driver: Driver, number: int) -> None:
        self.number = number
        self.ended: Promise[Ended] = Promise("the process to end" if number == PRIMARY else f"exec {number} to end")
        self.flushed: Promise[None] = Promise("the rest of the output")
        self._driver = driver
        self._input: InputPump | None = None
        self._outputs: dict[int, OutputPump] = {}
        self.first_output: float | None = None
        """When its first byte arrived, by time.monotonic()."""
        self.health: Health | None = None
        """What the agent said last of the health of the container; of the primary process only."""
        self.restarting: Restarting | None = None
        """How the primary process ended last, if it is or was started again."""
        self.complaints: list[str] = []
        """What went wrong with the user's descriptors."""

    def wait(self, seconds: float | None = None) -> int:
        """Waits for the end and for all output to be written; the exit code, 128 + n after signal n."""
        code = exit_code(self.ended.result(seconds))
        self.flushed.result(seconds)
        return code

    def signal(self, signal: int | str, group: bool = False) -> Promise[Record]:
        """Sends a signal, by number or name ("TERM", "SIGTERM"), to the process or to its process group."""
        number = signal if isinstance(signal, int) else parse_signal(signal)
        return self._driver.request(Signal(session=self.number, number=number, group=group))

    def resize(self, rows: int, columns: int) -> Promise[Record]:
        """Tells the terminal its size."""
        return self._driver.request(Resize(session=self.number, rows=rows, columns=columns))

    # in the I/O thread

    def loop_connect(self, stdio: Stdio) -> None:
        """Makes the pumps.  Before the session is asked for, so that nothing is missed."""
        if not stdio.streams:
            return
        self._output(stdout_of(self.number), stdio.stdout)
        self._output(stderr_of(self.number), stdio.stderr)
        if stdio.stdin is not None:
            self._input = InputPump(self._driver.reactor, stdio.stdin, self._driver.stream(stdin_of(self.number)))

    def loop_started(self) -> None:
        """It runs."""

    def loop_stream(self, number: int) -> None:
        """A stream of this session has news."""
        if number in self._outputs:
            if self.first_output is None and self._driver.stream(number).buffered:
                self.first_output = time.monotonic()
            self._outputs[number].resume()
        elif number == stdin_of(self.number) and self._input is not None:
            self._input.resume()

    def _loop_ended(self, event: Ended) -> None:
        """The process is gone; nobody will read its input any more."""
        if self._input is not None:
            self._input.close()
        self.ended.keep(event)
        self._check_flushed()

    def loop_told(self, event: Ended | Restarting | Health) -> None:
        """The process is gone, or (the primary one) is started again, or its health was looked at."""
        match event:
            case Health():
                self.health = event
            case Restarting():
                self.restarting = event
            case Ended():
                self._loop_ended(event)

    def loop_lost(self, error: BaseException) -> None:
        """The machine is gone, or the session was never started: writes out what has arrived."""
        if self._input is not None:
            self._input.close()
        self.ended.fail(error)
        for pump in list(self._outputs.values()):
            pump.finish()
        self._check_flushed()

    def loop_abandon_output(self) -> None:
        """Does not wait for sinks that take nothing."""
        for pump in list(self._outputs.values()):
            pump.abandon()

    def _output(self, number: int, target: int | Sink | None) -> None:
        stream = self._driver.stream(number)
        if target is None:
            stream.stop()
            return
        try:
            sink = open_sink(target) if isinstance(target, int) else target
        except SinkClosedError:  # `vch run >&-`: as for a local program, its output goes nowhere
            stream.stop()
            return
        self._outputs[number] = OutputPump(self._driver.reactor, stream, sink, self._done_with(number))

    def _done_with(self, number: int) -> Callable[[Exception | None], None]:
        def done(error: Exception | None) -> None:
            if isinstance(error, SinkClosedError):
                # Our reader has gone.  A local program would get SIGPIPE for this write: so does the container's.
                self._driver.loop_request(Signal(session=self.number, number=SIGPIPE))
            elif error is not None:
                name = "stdout" if number == stdout_of(self.number) else "stderr"
                self.complaints.append(f"write {name}: {getattr(error, 'strerror', None) or error}")
            self._check_flushed()

        return done

    def _check_flushed(self) -> None:
        if self.ended.done and all(pump.done for pump in self._outputs.values()):
            self.flushed.keep(None)


def exit_code(event: Ended) -> int:
    """Docker's exit code of a process: its own, or 128 + the signal that ended it."""
    state = event.state
    return state.code if isinstance(state, Exited) else SIGNAL_BASE + state.number
