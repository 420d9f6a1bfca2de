"""A session: one process that tether started, with its streams, from the request to the exit status.

    Created ──► Starting ──► Running ──► Exited | Signalled
                    └──────► Failed                            execve was not reached

The states are records and there are no others.  The exit status may come before the child's report has been read
(both wait in the same turn of the loop); it is kept until then, so that Started always precedes Ended.
"""

import os

from tether.faults import TetherError
from tether.link.messages import PRIMARY, Exited, Fault, Signalled, stderr_of, stdin_of, stdout_of
from tether.link.record import Record
from tether.process.execute import Place, spawn
from tether.process.pump import InputPump, OutputPump
from tether.process.report import read_report
from tether.process.terminal import open_other_end, resize
from tether.spec import Process, Terminal
from tether.steps import now_us

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.link.endpoint import Endpoint
    from tether.link.reactor import Reactor, Watch
    from tether.process.reaper import Reaper


class Created(Record):
    """Asked for, nothing done yet."""


class Starting(Record):
    """There is a child; execve has not been reported."""

    pid: int


class Running(Record):
    """The program runs."""

    pid: int


class Failed(Record):
    """It never ran."""

    fault: Fault


State = Created | Starting | Running | Exited | Signalled | Failed


class Session:
    """See the module.

    `started` is called once, with None or the Fault; `changed` when the process is gone, and when its output ends.
    With `kept` its streams go on after that: for the session that takes its place, or `finish_output`.
    """

    def __init__(self, number: int, started: "Callable[[Session, Fault | None], None]",
                 changed: "Callable[[Session], None]", kept: bool = False) -> None:
        self.number = number
        self.began_us = 0
        self.state: State = Created()
        self._kept = kept
        self._started, self._changed = started, changed
        self._early_status: int | None = None
        self._terminal = -1
        # /dev/console is there as long as the primary process, whoever has it open: an init system begins by closing
        # it, and a terminal that nobody has open has ended for us.
        self._console = -1
        self._inputs: dict[int, InputPump] = {}
        self._outputs: dict[int, OutputPump] = {}
        self._report = -1
        self._watch: Watch | None = None

    def start(self, reactor: "Reactor", endpoint: "Endpoint", reaper: "Reaper", place: Place, process: Process,
              *, detached: bool = False) -> None:
        """Spawns.  `started` will be called from the loop.  Raises as `spawn` if there is not even a child."""
        self.began_us = now_us()
        child = spawn(place, process, self.number == PRIMARY, detached)
        self.state = Starting(pid=child.pid)
        self._terminal = child.terminal
        if child.terminal >= 0 and self.number == PRIMARY:
            self._console = open_other_end(child.terminal)
        reaper.expect(child.pid, self._exited)
        if child.stdin >= 0:
            number = stdin_of(self.number)
            self._inputs[number] = InputPump(reactor, child.stdin, endpoint.stream(number), child.terminal >= 0,
                                             self._kept)
        for handle, number in ((child.stdout, stdout_of(self.number)), (child.stderr, stderr_of(self.number))):
            if handle >= 0:
                self._outputs[number] = OutputPump(reactor, handle, endpoint.stream(number), self._output_ended,
                                                   self._kept)

        self._report, self._reaper = child.report, reaper
        if child.report < 0:
            reactor.soon(lambda: self._begun(None))  # once whoever has called us knows of this session
        else:
            self._watch = reactor.watch(child.report, self._reported)

    @property
    def drained(self) -> bool:
        """All output has been read and given to the streams."""
        return all(pump.done for pump in self._outputs.values())

    @property
    def over(self) -> bool:
        """The process is gone, or never ran."""
        return isinstance(self.state, (Exited, Signalled, Failed))

    @property
    def end_state(self) -> Exited | Signalled | None:
        """How the process ended; None if it has not, or never ran."""
        return self.state if isinstance(self.state, (Exited, Signalled)) else None

    def stream_is_ready(self, number: int) -> None:
        """A stream of this session has news (bytes, room, or its end)."""
        if number in self._inputs:
            self._inputs[number].resume()
        elif number in self._outputs:
            self._outputs[number].resume()

    def signal(self, number: int, group: bool = False) -> None:
        """Sends a signal to the process, or to its process group.  Raises TetherError if the process does not run."""
        if not isinstance(self.state, Running):
            raise TetherError(f"session {self.number}", "is not running", hint="it has ended, or has not started yet")
        # The pid, which is the group's number too, is ours until the reaper has collected it.
        (os.killpg if group else os.kill)(self.state.pid, number)

    def cut_output(self) -> None:
        """Reads what has been written by now, and no more."""
        for pump in list(self._outputs.values()):  # the last one that is complete may be the end of this session
            pump.cut()

    def let_go(self) -> None:
        """Nobody will ask this session for anything any more: without its pumps, which know it, it is gone at once."""
        self._inputs.clear()
        self._outputs.clear()

    def finish_output(self) -> None:
        """Ends the output streams, and wants no more input, where they were kept."""
        for input in self._inputs.values():
            input.end_stream()
        for output in self._outputs.values():
            output.end_stream()

    def resize(self, size: Terminal) -> None:
        """Changes the size of the terminal.  Raises TetherError if there is none."""
        if self._terminal < 0 or self.over or all(pump.done for pump in self._outputs.values()):
            raise TetherError(f"session {self.number}", "has no terminal", hint="start it with a terminal")
        resize(self._terminal, size)

    def _reported(self, _ready: int) -> None:
        """The child has become the program, or says why not."""
        assert self._watch is not None
        self._watch.close()
        self._watch = None
        self._begun(read_report(self._report))

    def _begun(self, fault: Fault | None) -> None:
        assert isinstance(self.state, Starting)
        pid = self.state.pid
        self.state = Running(pid=pid) if fault is None else Failed(fault=fault)
        if fault is not None:
            self._reaper.forget(pid)
            self._close_inputs()
            self._close_console()
        self._started(self, fault)
        if self._early_status is not None and fault is None:
            self._exited(self._early_status)

    def _exited(self, status: int) -> None:
        """The reaper has the process."""
        if isinstance(self.state, Starting):
            self._early_status = status
            return
        if isinstance(self.state, Failed):
            return
        self.state = state_of(status)
        self._close_inputs()
        self._close_console()
        self._changed(self)

    def _close_inputs(self) -> None:
        for pump in self._inputs.values():
            pump.close()

    def _close_console(self) -> None:
        if self._console >= 0:
            os.close(self._console)
            self._console = -1

    def _output_ended(self) -> None:
        """An output stream is complete; whoever waits for `drained` looks again."""
        if self.over and self.drained:
            self._changed(self)


def state_of(status: int) -> Exited | Signalled:
    """The state that a wait status means (wait(2))."""
    if os.WIFSIGNALED(status):
        return Signalled(number=os.WTERMSIG(status), core=os.WCOREDUMP(status))
    return Exited(code=os.WEXITSTATUS(status))
