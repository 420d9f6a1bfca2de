"""A child of PID 1 that does one request: it reads or writes the container's files, or asks the kernel about it.

PID 1 itself touches none of the container's files: a file system that never answers (FUSE, NFS), a disk full of errors,
a tree built to exhaust whoever walks it can hurt, block or kill that child only.  What comes and goes by the megabyte
goes through a pipe, which PID 1 pumps to or from a stream as it does for sessions; the result, or the Fault, comes
through another one.  The request is answered when the child is gone and all that it wrote is on its way.
"""

import os
import sys

from tether.faults import TetherError, fault_of
from tether.link.control import ANSWER, LENGTH_SIZE, Unreadable, length_of, read_message, write_message
from tether.link.errors import ProtocolError
from tether.link.messages import Fault, Signalled, stdin_of, stdout_of
from tether.link.record import Record
from tether.process.forked import forget_parent
from tether.process.pump import InputPump, OutputPump
from tether.process.session import state_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable

    from tether.agent import Agent
    from tether.link.reactor import Watch
    from tether.link.stream import Stream
else:
    import _signal

MAX_REPORT = 1 << 20  # what a control message may be
CHUNK = 65536


class Desk(Record):
    """What a worker has in hand: descriptors of the container's root (O_PATH) and of its pipe, or -1."""

    root: int
    data: int = -1

    def confine(self) -> None:
        """Makes the container's root the worker's own.  From here on nothing can be imported."""
        sys.meta_path.clear()  # it would be the container's files that are imported
        os.fchdir(self.root)
        os.chroot(".")


class Worker:
    """One request on its way.  `work` is called in the child and returns the answer, or raises."""

    def __init__(self, step: str, work: "Callable[[Desk], Record]") -> None:
        self._step, self._work = step, work
        self._told = bytearray()
        self._status: int | None = None
        self._output: OutputPump | None = None
        self._input: InputPump | None = None
        self._stream: Stream | None = None
        self._report: Watch | None = None

    def start(self, agent: "Agent", id: int, *, sends: int = 0, takes: int = 0) -> None:
        """Forks.  `sends`/`takes`: the session number on whose streams it writes or reads, if it does.

        Raises TetherError if the container does not run or the number is taken, OSError if there is not even a child.
        """
        root = agent.place.root
        number = sends or takes
        if number:
            agent.check_number(number)
        ours = theirs = -1
        report, told = os.pipe()
        if number:
            reading, writing = os.pipe()
            ours, theirs = (reading, writing) if sends else (writing, reading)
            os.set_blocking(ours, False)
        try:
            self._pid = os.fork()
            if not self._pid:
                _child(self._step, self._work, Desk(root=root, data=theirs), told)
        except OSError:
            for handle in (report, ours):
                if handle >= 0:
                    os.close(handle)
            raise
        finally:
            for handle in (told, theirs):
                if handle >= 0:
                    os.close(handle)
        self._agent, self._id, self._number = agent, id, number
        agent.reaper.expect(self._pid, self._exited)
        self._report = agent.reactor.watch(report, self._reported)
        if number:
            agent.workers[number] = self
            self._connect(ours, bool(sends))

    def stream_is_ready(self, _number: int) -> None:
        """Its stream has bytes or room; or the appliance has given up, and so does the worker."""
        assert self._stream is not None
        if self._status is None and (self._stream.stopped or self._stream.aborted):
            os.kill(self._pid, _signal.SIGKILL)
        for pump in (self._output, self._input):
            if pump is not None:
                pump.resume()

    def _connect(self, ours: int, sends: bool) -> None:
        agent = self._agent
        if sends:
            self._stream = agent.endpoint.stream(stdout_of(self._number))
            self._output = OutputPump(agent.reactor, ours, self._stream, self._settle)
        else:
            self._stream = agent.endpoint.stream(stdin_of(self._number))
            self._input = InputPump(agent.reactor, ours, self._stream, terminal=False)

    def _reported(self, _ready: int) -> None:
        assert self._report is not None
        told = os.read(self._report.fd, CHUNK)
        self._told += told
        if told and len(self._told) <= MAX_REPORT:
            return
        self._report.close()
        os.close(self._report.fd)
        self._report = None
        self._settle()

    def _exited(self, status: int) -> None:
        self._status = status
        if self._input is not None:
            self._input.close()
        self._settle()

    def _settle(self) -> None:
        """Answers, once nothing more will come from the child."""
        if self._status is None or self._report is not None or (self._output is not None and not self._output.done):
            return
        if self._number:
            self._agent.workers.pop(self._number, None)
        self._output = self._input = self._stream = None  # they know us: memory would wait for the collector
        self._agent.endpoint.answer(self._id, self._result(self._status))

    def _result(self, status: int) -> Record:
        """What the child has told, or how it ended without a word."""
        try:
            told = bytes(self._told)
            if len(told) > LENGTH_SIZE and length_of(told[:LENGTH_SIZE], MAX_REPORT) == len(told) - LENGTH_SIZE:
                _, _, message = read_message(told[LENGTH_SIZE:])
                if not isinstance(message, Unreadable):
                    return message
        except ProtocolError as error:
            return fault_of(self._step, TetherError("worker", str(error)))
        state = state_of(status)
        how = f"was killed by signal {state.number}" if isinstance(state, Signalled) else "ended without an answer"
        return Fault(step=self._step, object="worker", text=how, errno="ECANCELED", maybe_done=True,
                     hint="the appliance gave up, a process of the container killed it, or memory ran out")


def _child(step: str, work: "Callable[[Desk], Record]", desk: Desk, told: int) -> None:
    """The child's whole life; never returns."""
    try:
        forget_parent({desk.root, desk.data, told})
        answer = work(desk)
    except BaseException as error:  # noqa: BLE001 - it is told to the parent, whatever it is
        answer = fault_of(step, error)
    try:
        message = write_message(ANSWER, 0, answer)
        while message:
            message = message[os.write(told, message):]
    finally:
        os._exit(0)
