"""Container images as machines, for programs: `vch.Machine` (docs/machine.md).

    with vch.Machine("debian:12") as machine:
        machine.put("project", "/work")
        result = machine.exec("make", "-C", "/work/project", check=True)
        machine.get("/work/project/report", "out")

Layered on vch.machine.Machine, which is one VM and knows nothing of images, and on what `vch run` is made of: options
have its names and meaning.  Methods may be called from any thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, TypedDict, cast

from tether.link.late_messages import Stats, Top
from tether.link.messages import PRIMARY, Resize, Signal
from tether.spec import Identity, Process, Spec, Terminal
from vch import settings as settings_module
from vch.errors import DeadlineError, UsageError
from vch.launch import Launch, check, new_id
from vch.locks import NameLock
from vch.machine import files, machine
from vch.machine.files import AnyPath, Change
from vch.machine.session import Session, Stdio
from vch.machine.sinks import Collector
from vch.options import values
from vch.options.run_options import FLAGS, RunOptions, parse_run
from vch.options.spec_plan import build_spec
from vch.prepare import prepare
from vch.program import Completed, ProgramFailedError

if TYPE_CHECKING:
    from typing import Unpack

    from tether.link.late_messages import FileStat, MemoryShort, OutOfMemory, ProcessTable, Statistics
    from tether.link.record import Record
    from vch.pool import Pool

OUTPUT_LIMIT = 64 << 20  # bytes kept of each of a program's outputs
STOP_SECONDS = 10.0  # Docker's grace between stop signal and SIGKILL
SIGKILL = 9
TOP_COLUMNS = ("uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd")  # ps -ef, as `docker top`
_NOT_STARTED = "the machine does not run: use it in a with statement, or call start()"
_KILLED_SECONDS = 60.0  # for what has been killed to be gone, on a host that emulates

Words = str | Sequence[str]


class Options(TypedDict, total=False):
    """Options of `vch run`, "-" written as "_"; those that may be repeated take a list.  docs/run.md explains them."""

    add_host: Words
    cap_add: Words
    cap_drop: Words
    cold: bool
    cpus: int | float | str
    dns: Words
    dns_option: Words
    dns_search: Words
    domainname: str
    entrypoint: str
    env: Words | Mapping[str, str]
    env_file: Words
    group_add: Words
    health_cmd: str
    hostname: str
    ip: str
    ip6: str
    mac_address: str
    memory: int | str
    mount: Words
    name: str
    network: str
    no_healthcheck: bool
    pid: str
    platform: str
    privileged: bool
    publish: Words
    pull: str
    read_only: bool
    restart: str
    security_opt: Words
    stop_signal: str
    sysctl: Words
    systemd: str
    tmpfs: Words
    ulimit: Words
    user: str
    verity: bool
    volume: Words
    workdir: str


class Machine:
    """A container image as a running machine.

    `command` is its primary process, with whose end it ends; without one it waits for what `exec` runs in it.  With
    `own_command` it runs what the image says.  With a `pool` it may be one that has been waiting.  See the module, and
    `Options` for the rest.
    """

    def __init__(
        self,
        image: str,
        *command: str,
        own_command: bool = False,
        pool: Pool | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Fetches nothing and starts nothing yet.  Raises UsageError for options that cannot be."""
        self._options = parse_run([*option_words(options), "--", image, *command], os.environ)
        self._idle = not command and not own_command and not self._options.entrypoint
        self._pool = pool
        self._held = ExitStack()
        self._machine: machine.Machine | None = None
        self._primary: Session | None = None
        self._spec: Spec | None = None
        self._outputs = (Collector(OUTPUT_LIMIT), Collector(OUTPUT_LIMIT))

    def __enter__(self) -> Machine:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @classmethod
    def run(
        cls, image: str, *command: str, timeout: float | None = None, check: bool = False, **options: Unpack[Options]
    ) -> Completed:
        """Runs a command (or what the image says) in a machine of its own, to its end; its exit code and output.

        Raises DeadlineError if that takes more than `timeout` seconds, with `check` ProgramFailedError.
        """
        with cls(image, *command, own_command=True, **options) as made:
            done = made.wait(timeout)
        if check and done.code:
            raise ProgramFailedError(done)
        return done

    def start(self) -> None:
        """Fetches the image if need be, starts the machine, and its primary process.  Raises OperationError."""
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the machine, if it runs; nothing of it is left.  Named volumes are unmounted properly."""
        try:
            if self._machine is not None:
                self._machine.end(self._spec)
        finally:
            self._held.close()
            self._machine = None

    # programs

    def exec(
        self,
        *args: str,
        input: str | bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str | None = None,
        timeout: float | None = None,
        check: bool = False,
    ) -> Completed:
        """Runs a program to its end, with the image's environment, user and working directory unless told otherwise.

        Raises GuestError if it cannot be run, DeadlineError (after killing it) if it has not ended within `timeout`
        seconds, and with `check` ProgramFailedError if its exit code is not 0.
        """
        out, err = Collector(OUTPUT_LIMIT), Collector(OUTPUT_LIMIT)
        with ExitStack() as held:
            source = _as_file(input, held) if input else None
            session = self.popen(*args, stdio=Stdio(stdin=source, stdout=out, stderr=err), env=env, cwd=cwd, user=user)
            try:
                code = session.wait(timeout)
            except DeadlineError:
                session.signal(SIGKILL)
                session.ended.result(_KILLED_SECONDS)
                raise DeadlineError("run", " ".join(args), f"not done within {timeout} s, and killed") from None
        done = Completed(args, code, bytes(out.content), bytes(err.content), out.truncated or err.truncated)
        if check and code:
            raise ProgramFailedError(done)
        return done

    def popen(
        self,
        *args: str,
        stdio: Stdio | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str | None = None,
        terminal: tuple[int, int] | None = None,
    ) -> Session:
        """Starts a program and returns at once; its streams are file descriptors of yours (`Stdio`).

        `terminal`: rows and columns of one that it gets.  Raises GuestError if it cannot be run.
        """
        stdio = stdio or Stdio()
        process = self._process(args, env, cwd, user).but(
            terminal=Terminal(rows=terminal[0], columns=terminal[1]) if terminal else None,
            stdin=stdio.stdin is not None,
        )
        return self.machine.exec(process, stdio)[0]

    def wait(self, timeout: float | None = None) -> Completed:
        """Waits for the end of the primary process.  Raises DeadlineError, MachineLostError."""
        args = tuple(os.fsdecode(arg) for arg in self.spec.process.args)
        out, err = self._outputs
        code = self.primary.wait(timeout)
        return Completed(args, code, bytes(out.content), bytes(err.content), out.truncated or err.truncated)

    def signal(self, signal: int | str) -> None:
        """Sends a signal, by number or name, to the primary process.  Raises GuestError, ValueError."""
        number = signal if isinstance(signal, int) else values.parse_signal(signal)
        self.machine.tell(Signal(session=PRIMARY, number=number)).result(machine.ANSWER_SECONDS)

    def resize(self, rows: int, columns: int) -> None:
        """Tells the primary process's terminal its size.  Raises GuestError if it has none."""
        self.machine.tell(Resize(session=PRIMARY, rows=rows, columns=columns)).result(machine.ANSWER_SECONDS)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Ends it in order: stop signal, after `seconds` SIGKILL, unmount, power off; waits for it."""
        running = self.machine
        running.stop(seconds)
        running.join(seconds + machine.POWER_OFF_SECONDS + machine.KILL_SECONDS)

    # files

    def put(self, local: AnyPath, path: AnyPath, *, owner: str = "0:0") -> None:
        """Copies a local file or folder into the folder `path`, under its own name; "local/." copies what is in it.

        `owner`: who gets it, a user of the image or numbers; "" keeps the local numbers.  Raises GuestError, HostError.
        """
        files.put(self.machine, local, path, owner=owner)

    def get(self, path: AnyPath, local: AnyPath) -> None:
        """Copies the file or folder `path` into the local folder `local`, made if missing; "path/." what is in it.

        Nothing is written elsewhere, whatever the machine sends; devices, owners and set-id bits are left out.
        Raises GuestError, HostError.
        """
        files.get(self.machine, path, local)

    def put_archive(self, source: int, path: AnyPath, *, owner: str = "") -> None:
        """Unpacks the tar archive that the file descriptor `source` gives into the folder `path`."""
        files.put_archive(self.machine, source, path, owner=owner)

    def get_archive(self, path: AnyPath, sink: int) -> None:
        """Writes `path` as a tar archive to the file descriptor `sink`: all that Linux keeps about files is in it."""
        files.get_archive(self.machine, path, sink)

    def stat(self, path: AnyPath) -> FileStat:
        """What is at `path`; a symbolic link is not followed.  Raises GuestError."""
        return files.stat(self.machine, path)

    def diff(self) -> list[Change]:
        """What has changed against the image, by path."""
        return files.diff(self.machine)

    # facts

    def stats(self) -> Statistics:
        """What it has used so far: CPU, memory, disks, network, processes; counted since it started."""
        return cast("Statistics", self.machine.tell(Stats()).result(machine.ANSWER_SECONDS))

    def top(self, *columns: str) -> ProcessTable:
        """Its processes; `columns` by the names that ps -o takes, by default those of `ps -ef`.  Raises GuestError."""
        answer = self.machine.tell(Top(columns=columns or TOP_COLUMNS)).result(machine.ANSWER_SECONDS)
        return cast("ProcessTable", answer)

    def watch_memory(self, on_event: Callable[[OutOfMemory | MemoryShort], None]) -> None:
        """From now on `on_event` hears, in another thread, when memory is short and when the OOM killer has struck."""
        self.machine.watch_memory(cast("Callable[[Record], None]", on_event))

    def logs(self, level: str = "info") -> list[str]:
        """The log of the agent in the machine: lines "LEVEL SECONDS TEXT".

        It logs from the first call on, what is of this level ("debug", "info", "warning", "error") or above.
        """
        return self.machine.log(level)

    # what is below

    @property
    def machine(self) -> machine.Machine:
        """The VM itself.  Raises UsageError if it does not run."""
        if self._machine is None:
            raise UsageError(_NOT_STARTED, "vch.Machine")
        return self._machine

    @property
    def primary(self) -> Session:
        """The primary process.  Raises UsageError if the machine was not started."""
        if self._primary is None:
            raise UsageError(_NOT_STARTED, "vch.Machine")
        return self._primary

    @property
    def spec(self) -> Spec:
        """What the guest was told to run.  Raises UsageError if the machine was not started."""
        if self._spec is None:
            raise UsageError(_NOT_STARTED, "vch.Machine")
        return self._spec

    def _start(self) -> None:
        options = self._options
        settings = settings_module.load(os.environ)
        servers = check(options, settings)
        if options.name:
            self._held.enter_context(NameLock(settings.state, "container", options.name))
        prepared = prepare(options, settings, lambda _line: None)
        self._held.callback(prepared.lease.release)
        launch = Launch(options, settings, prepared, new_id(), servers)
        disks = launch.disks()
        self._held.callback(disks.close)
        config = launch.config(disks, launch.ports())
        if self._pool is not None:
            self._machine = self._pool.take(config, settings.home, prepared.program, launch.cloning())
            self._held.callback(self._machine.close)
        else:
            self._machine = machine.Machine(config, prepared.program, cloning=launch.cloning())
            self._held.callback(self._machine.close)
            self._machine.boot()
        prepared.lease.release()
        spec = build_spec(self._with_command(), prepared.run, launch.placement(), Identity(entropy=b"", clock_ns=0))
        if self._idle:
            spec = spec.but(process=spec.process.but(args=(), idle=True))
        self._spec = spec
        out, err = self._outputs
        self._primary, _ = self._machine.start(spec, Stdio(stdout=out, stderr=err))

    def _with_command(self) -> RunOptions:
        """Options that have a command: an image need not have one."""
        if not self._idle:
            return self._options

        return self._options._replace(entrypoint="", command=("idle",))

    def _process(self, args: Sequence[str], env: Mapping[str, str] | None, cwd: str, user: str | None) -> Process:
        """As the primary one, but for what is given."""
        base = self.spec.process
        more = tuple(os.fsencode(f"{name}={value}") for name, value in (env or {}).items())
        return base.but(
            args=tuple(os.fsencode(arg) for arg in args),
            env=(*base.env, *more),
            cwd=os.fsencode(cwd) if cwd else base.cwd,
            user=base.user if user is None else user,
            idle=False,
        )


def option_words(options: Mapping[str, object]) -> list[str]:
    """Keyword options as the words of a command line.  Raises UsageError for one that `vch run` does not have."""
    known = {flag.name: flag for flag in FLAGS}
    words: list[str] = []
    for key, value in options.items():
        name = key.replace("_", "-")
        if name not in known:
            raise UsageError(f"unknown option {key!r}", "vch.Machine")
        words += [f"--{name}={one}" for one in _values(value)]
    return words


def _values(value: object) -> list[str]:
    """What an option is given, as often as it is given."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, Mapping):
        return [f"{one}={what}" for one, what in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [str(one) for one in value]
    return [str(value)]


def _as_file(data: str | bytes, held: ExitStack) -> int:
    """A file in memory with this content."""
    handle = os.memfd_create("input", os.MFD_CLOEXEC)
    held.callback(os.close, handle)
    view = memoryview(data.encode() if isinstance(data, str) else data)
    while view:
        view = view[os.write(handle, view) :]
    os.lseek(handle, 0, os.SEEK_SET)
    return handle
