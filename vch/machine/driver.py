"""The I/O thread of one machine: it alone touches QEMU, the link, the console and the monitor.

Other threads reach it through `post` and the promises it keeps.  It starts QEMU itself, because QEMU's life hangs on
the thread that started it (vch/qemu/process.py).  It ends when QEMU has ended and everything that QEMU or the guest
still said has been read: the sockets' own ends say when that is, so nothing is lost and nothing waits for a timer.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from io import FileIO
from typing import TYPE_CHECKING, Any

from tether.link import events as link
from tether.link.endpoint import Endpoint
from tether.link.errors import LinkError
from tether.link.hello import APPLIANCE
from tether.link.late_messages import Health, Restarting
from tether.link.limits import PORT, UART
from tether.link.messages import (
    FIRST_SESSION_STREAM,
    LOG_STREAM,
    PRIMARY,
    STREAMS_PER_SESSION,
    Ended,
    Fault,
    Goodbye,
    Ready,
)
from tether.link.reactor import Reactor
from tether.link.waking import Wake, pack
from tether.link.wire import Wire
from vch.clone.resume import Resume
from vch.errors import GuestError, MachineError, OperationError
from vch.machine.explain import Evidence, Stage, explain
from vch.machine.host_line import HostLine, new_line
from vch.machine.identity import new_identity
from vch.machine.observer import Observer
from vch.machine.session import Session
from vch.promise import Promise
from vch.qemu import config as qemu
from vch.qemu.channel import open_channels, read_channel
from vch.qemu.config import LinkKind, MachineConfig, Role
from vch.qemu.console import Console
from vch.qemu.full_disk import FullDisk
from vch.qemu.monitor import Monitor
from vch.qemu.process import Ended as QemuEnded
from vch.qemu.process import QemuProcess
from vch.qemu.qmp import Qmp, QmpAnswer, QmpEvent, QmpProtocolError

if TYPE_CHECKING:
    from tether.link.record import Record
    from tether.link.stream import Stream
    from vch.machine.transfer import Transfer


class Driver:
    """See the module."""

    def __init__(self, config: MachineConfig, program: str, on_notice: Callable[[str], None]) -> None:
        """`on_notice` is told, in the I/O thread, what the user should hear of although it has ended nothing."""
        self.ready: Promise[Ready] = Promise("the machine to boot")
        self.gone: Promise[MachineError] = Promise("the machine to end")
        """Kept when QEMU has ended and all was read, with the explanation (which is no error if it was asked for)."""
        self.reactor = Reactor()
        self.console = Console(on_halt=lambda: self._kill("a process in it halted the machine, and it was killed"))
        self.observer = Observer()
        self.stage = Stage.BOOTING
        self._notify = on_notice
        self._config, self._program = config, program
        limits = UART if config.link is LinkKind.UART else PORT
        self._endpoint = Endpoint(APPLIANCE, limits, software="vch")
        self._wire = Wire(self.reactor, self._endpoint, self._link_event, self._link_closed)
        self._qmp = Qmp()
        self._qmp_end: socket.socket | None = None
        self.monitor = Monitor(self.post, self._tell_qemu)
        self._full_disk = FullDisk(self.reactor, lambda: self._tell_qemu("cont"), on_notice)
        self._sessions: dict[int, Session | Transfer] = {}
        self._answers: dict[int, Promise[Record]] = {}
        self._process: QemuProcess | None = None
        self._goodbye: Goodbye | None = None
        self._link_failure = ""
        self._shutdown = ""  # why QEMU ends, as it says itself
        self._killed = ""  # why we ended it, where that is no secret of the caller's
        self._line: HostLine | None = None
        self._resume: Resume | None = None
        self._open: set[str] = set()  # channels whose end has not been seen
        self._ends: list[socket.socket | FileIO] = []
        self._reason: MachineError | None = None  # why the machine is gone, once it is
        self._lock = threading.RLock()  # between `post` and the thread's end; reentrant, for signal handlers
        self._closed_for_posts = False
        self._thread = threading.Thread(target=self._run, name=f"machine {config.name}", daemon=True)

    # from any thread

    def start(self) -> None:
        """Starts the thread, which starts QEMU."""
        self._thread.start()

    def post(self, call: Callable[[], None]) -> bool:
        """Has the I/O thread call this; False if it has ended, and will not.  Safe in signal handlers."""
        with self._lock:
            if self._closed_for_posts:
                return False
            self.reactor.post(call)
            return True

    def request(self, message: Record) -> Promise[Record]:
        """Asks the guest."""
        promise: Promise[Record] = Promise(f"the answer to {type(message).__name__}")
        if not self.post(lambda: self._ask(message, promise)):
            promise.fail(self.gone.result(0))
        return promise

    def open(self, session: Session | Transfer, message: Record, connect: Callable[[], None]) -> Promise[Record]:
        """Connects a session and asks the guest to start it."""
        started: Promise[Record] = Promise("the process to start")

        def open_it() -> None:
            connect()
            self._open_session(session, message, started)

        if not self.post(open_it):
            started.fail(self.gone.result(0))
        return started

    def kill(self) -> None:
        """Ends QEMU at once."""
        self.post(self._kill)

    def kill_later(self, seconds: float) -> None:
        """Ends QEMU in `seconds`, should it still run then."""

        def overdue() -> None:
            why = f"did not power off within {seconds:.0f} s and was killed"
            self._notify(f"the machine {why}")
            self._kill(f"it {why}")

        self.post(lambda: void(self.reactor.call_later(seconds, overdue)))

    def join(self, seconds: float) -> bool:
        """Waits for the thread to end, which is after the machine's and when all output is written."""
        if self._thread.ident is None:  # it was never started
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def abandon_output(self) -> None:
        """Does not wait for somebody who does not read."""

        def abandon() -> None:
            for session in self._sessions.values():
                session.loop_abandon_output()

        self.post(abandon)

    # from the I/O thread

    def stream(self, number: int) -> Stream:
        """A stream of the link."""
        return self._endpoint.stream(number)

    def _open_session(self, session: Session | Transfer, message: Record, started: Promise[Record]) -> None:
        self._sessions[session.number] = session

        def answered(answer: Promise[Record]) -> None:
            if answer.error is not None:
                session.loop_lost(answer.error)
            else:
                self.stage = Stage.RUNNING
                session.loop_started()

        started.then(answered)
        self._ask(message, started)

    def loop_forget(self, number: int) -> None:
        """A transfer is over; its number may be used again."""
        self._sessions.pop(number, None)

    def loop_request(self, message: Record, done: Callable[[Promise[Record]], None] | None = None) -> None:
        """Asks the guest for something whose failure is nobody's business (the process may just have ended)."""
        promise: Promise[Record] = Promise("nothing")
        if done is not None:
            promise.then(done)
        self._ask(message, promise)

    def _ask(self, message: Record, promise: Promise[Record]) -> None:
        if self._reason is not None:
            promise.fail(self._reason)
            return
        try:
            self._answers[self._endpoint.request(message)] = promise
        except LinkError as error:
            promise.fail(MachineError(type(message).__name__.lower(), "link", str(error)))

    # the thread

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._begin()
            while self._open:
                self.reactor.run_once()
        except OperationError as failure:
            error = failure
        except BaseException as failure:  # noqa: BLE001 - a bug of ours: whoever waits for us must hear of it
            error = failure
        self._end(error)

    def _begin(self) -> None:
        ours, theirs = open_channels()
        config, self._line = new_line(
            self._config, ours.link, lambda: "process" in self._open, lambda: self._closed("link")
        )
        command = qemu.command_line(config, theirs.channels, self._program)
        try:
            self._process = QemuProcess(command, qemu.inherited(config, theirs.channels))
        finally:
            theirs.close()
        self._ends = [ours.qmp, ours.console]
        self._open = {"process", "console", "qmp"}
        self._watch_process(self._process)
        read_channel(self.reactor, ours.console, self.console.feed, lambda: self._closed("console"))
        read_channel(self.reactor, ours.qmp, self._qmp_data, lambda: self._closed("qmp"))
        self._qmp_end = ours.qmp
        if self._config.role is Role.CLONE:
            self._resume = Resume(self._config, self._tell_qemu, lambda: self._wake(ours.link))
            self._resume.begin()
        else:
            self._send_qmp()
            self._serve(self._line)

    def _serve(self, line: HostLine) -> None:
        """From here on the link's end is one to wait for."""
        self._open.add("link")
        line.serve(self._wire)

    def _wake(self, link_end: socket.socket) -> None:
        """The clone's first words come before the link."""
        assert self._line
        try:
            link_end.send(pack(Wake(identity=new_identity())))
        except (BrokenPipeError, ConnectionResetError):
            return  # QEMU has just ended, and its end says why
        self._serve(self._line)

    def _end(self, error: BaseException | None) -> None:
        """QEMU has ended, or we cannot go on."""
        ended = self._process.close() if self._process is not None else None
        self._wire.close()
        if self._line is not None:
            self._line.close()
        self._full_disk.close()
        if self._resume is not None:
            self._resume.abandon()
        self._qmp.closed("QEMU has ended")
        for end in self._ends:
            end.close()
        self._reason = reason = self._why(ended, error)
        for promise in self._answers.values():
            promise.fail(reason)
        for session in list(self._sessions.values()):
            session.loop_lost(reason)
        self.ready.fail(reason)
        self.gone.keep(reason)
        while not all(session.flushed.done for session in self._sessions.values()):
            self.reactor.run_once()  # somebody reads slowly what the machine has left
        with self._lock:
            self._closed_for_posts = True
        self.reactor.run_once(0)  # what was posted before that
        self.reactor.close()

    def _why(self, ended: QemuEnded | None, error: BaseException | None) -> MachineError:
        if error is None:
            return explain(Evidence(self.stage, self.console, ended, self._goodbye, self._link_failure,
                                    self._shutdown, self._killed))
        if isinstance(error, MachineError):
            return error
        if isinstance(error, OperationError):
            return MachineError(error.step, error.subject, error.cause, error.remedy, self.console.tail())
        bug = MachineError("machine", "I/O thread", f"{type(error).__name__}: {error}", "a bug in vch: report it")
        bug.__cause__ = error
        return bug

    def _kill(self, why: str = "") -> None:
        self._killed = self._killed or why
        if self._process is not None:
            self._process.kill()

    # QEMU

    def _watch_process(self, process: QemuProcess) -> None:
        def ended(_conditions: int) -> None:
            ended_watch.close()
            self._closed("process")
            if self._line is not None:
                self._line.machine_ended()

        def complained(_conditions: int) -> None:
            if not process.read_stderr():
                stderr_watch.close()

        ended_watch = self.reactor.watch(process.pidfd, ended)
        stderr_watch = self.reactor.watch(process.stderr, complained)

    def _closed(self, channel_name: str) -> None:
        self._open.discard(channel_name)

    def _qmp_data(self, data: bytes) -> None:
        try:
            for event in self._qmp.receive(data):
                self._qmp_event(event)
        except QmpProtocolError as error:
            raise MachineError("monitor", "QEMU", str(error), "report it") from error

    def _qmp_event(self, event: QmpEvent) -> None:
        if event.name == "BLOCK_IO_ERROR":
            self._full_disk.event(event)
        elif event.name == "SHUTDOWN":
            self._shutdown = str(event.data.get("reason", ""))
        elif event.name == "SUSPEND":  # S3, from which nothing wakes it
            self._kill("a process in it suspended the machine, and it was killed")
        elif event.name == "MIGRATION" and self._resume is not None:
            self._resume.event(event)
        self.monitor.event(event)

    def _tell_qemu(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        done: Callable[[QmpAnswer], None] | None = None,
        files: tuple[int, ...] = (),
    ) -> None:
        """Gives the monitor a command.  Without `done` its answer does not matter: events tell what came of it."""
        self._qmp.execute(command, arguments, done)
        self._send_qmp(files)

    def _send_qmp(self, files: tuple[int, ...] = ()) -> None:
        try:
            if self._qmp_end is not None:
                socket.send_fds(self._qmp_end, [self._qmp.transmit()], files)
        except (BrokenPipeError, ConnectionResetError):
            return  # as in `_wake`
        except BlockingIOError as error:
            raise MachineError("monitor", "QEMU", "it takes no commands", "it hangs: report it") from error

    # the link

    def _link_event(self, event: link.Event) -> None:
        match event:
            case link.Answered(id=number, message=message):
                self._answered(number, message)
            case link.Notified(message=message):
                self._notified(message)
            case link.Refused(reason=reason) | link.Failed(reason=reason):
                self._link_failure = reason
                self._kill()
            case link.Connected():
                if self._line is not None:
                    self._line.answered()
            case link.Disconnected():
                pass
            case _:
                number = getattr(event, "stream", 0)
                if number == LOG_STREAM:
                    self.observer.log(self.stream(LOG_STREAM))
                session = self._sessions.get((number - FIRST_SESSION_STREAM) // STREAMS_PER_SESSION)
                if session is not None and number >= FIRST_SESSION_STREAM:
                    session.loop_stream(number)

    def _answered(self, number: int, message: Record) -> None:
        promise = self._answers.pop(number, None)
        if promise is None:
            return
        if isinstance(message, Fault):
            promise.fail(GuestError(message, self.console.tail()))
        else:
            promise.keep(message)

    def _notified(self, message: Record) -> None:
        match message:
            case Ready():
                self.stage = Stage.READY
                self.ready.keep(message)
            case Ended() | Restarting() | Health():
                session = self._sessions.get(getattr(message, "session", PRIMARY))
                if isinstance(session, Session):
                    session.loop_told(message)
            case Goodbye():
                self._goodbye = message
            case _:
                self.observer.event(message)

    def _link_closed(self, _reason: str) -> None:
        if self._line is None or not self._line.lost():
            self._closed("link")


def void(_value: object) -> None:
    """Makes a call that returns something one that does not."""
