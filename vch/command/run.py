"""`vch run`: one container VM in the foreground, from its image to its exit code.

    settings ─► image, kernel, boot image, accelerator ─► names, ports, disks ─► boot ─► start ─► wait ─► power off

Everything taken on the way is given back on the way out, whatever happens; and what only the kernel could give back
after SIGKILL (QEMU, its files, its locks) hangs on this process alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tether.link.messages import PRIMARY, Resize, Signal
from tether.spec import Identity
from vch import settings as settings_module
from vch.command import terminal
from vch.command.profile import Profile
from vch.command.signals import Actions, Interrupted, SignalRouter
from vch.command.timing import Stopwatch
from vch.errors import GuestError, MachineLostError, OperationError, UsageError
from vch.launch import Launch, check, new_id
from vch.locks import NameLock
from vch.machine.explain import is_missing_command
from vch.machine.machine import Machine
from vch.machine.session import Session, Stdio
from vch.options.run_options import RunOptions
from vch.options.spec_plan import arguments, build_spec
from vch.ports import describe_chosen
from vch.prepare import prepare
from vch.settings import Settings

EXIT_OURS = 125  # Docker: the daemon itself failed
EXIT_KILLED = 128 + 9  # what Docker reports of a container whose end it did not see


def run(options: RunOptions, environ: Mapping[str, str]) -> int:
    """Runs it; the exit code for the shell.  Prints its own errors."""
    with SignalRouter() as router:
        try:
            return _Run(options, settings_module.load(environ), router).execute()
        except Interrupted as interrupted:
            return 128 + interrupted.number
        except UsageError:
            raise
        except OperationError as error:
            complain(error, options.debug)
            return exit_code_of(error)


def exit_code_of(error: OperationError) -> int:
    """Docker's exit code for a failure."""
    if isinstance(error, GuestError):
        return is_missing_command(error.fault) or EXIT_OURS
    return EXIT_KILLED if isinstance(error, MachineLostError) else EXIT_OURS


def complain(error: OperationError, debug: bool) -> None:
    """One sentence; with -D the console's end before it."""
    console = getattr(error, "console", "")
    if debug and console:
        print(f"--- console ---\n{console}\n---------------", file=sys.stderr)
    print(f"vch: {error}", file=sys.stderr)


class _Run:
    """One run: what it was asked for, and what it holds."""

    def __init__(self, options: RunOptions, settings: Settings, router: SignalRouter) -> None:
        self._options, self._settings, self._router = options, settings, router
        self._held = ExitStack()
        self._watch = Stopwatch()
        self._profile = Profile(wanted=options.profile, picture=options.profile_file)
        self._killed_by_user = False

    def execute(self) -> int:
        """Everything, in order."""
        options = self._options
        servers = _check(options, self._settings)
        with self._held:
            if options.name:
                self._held.enter_context(NameLock(self._settings.state, "container", options.name))
            prepared = prepare(options, self._settings, self._debug)
            self._held.callback(prepared.lease.release)
            self._watch.lap("prepare")
            arguments(options, prepared.run)  # "no command specified": before anything is booted
            launch = Launch(options, self._settings, prepared, new_id(), servers)
            disks = launch.disks()
            self._held.callback(disks.close)
            ports = launch.ports()
            for line in describe_chosen(options.ports, ports):
                self._say(line)
            config = launch.config(disks, ports)
            self._debug(f"machine {config.name}: {prepared.verdict.accelerator.value}, {config.memory_mib} MiB")
            machine = Machine(config, prepared.program, self._notice, cloning=launch.cloning(), on_detail=self._debug)
            self._held.callback(machine.close)
            self._profile.machine_starts()
            ready = machine.boot()
            self._profile.ready(ready)
            prepared.lease.release()  # QEMU has the files open: nothing named is ours from here on
            self._watch.lap("boot", ready.phases)
            if options.log_level or options.debug:
                machine.log(options.log_level or "debug", lambda line: self._notice(f"{self._elapsed()}tether: {line}"))
            placement = launch.placement(terminal.size(0, 1, 2) if options.tty else None)
            spec = build_spec(options, prepared.run, placement, Identity(entropy=b"", clock_ns=0))
            with terminal.RawMode(0, options.tty and options.interactive):
                session, started = machine.start(spec, self._stdio())
                self._watch.lap("start", started.phases)
                self._watch.agent_kib = started.resident_kib
                self._profile.started(started)
                code = self._serve(machine, session, spec.stop_signal)
            self._watch.lap("run")
            self._profile.over(machine, session)
            machine.end(spec)
        self._watch.lap("end")
        self._report()
        return code

    def _report(self) -> None:
        """Where the time went, for who asked for it."""
        for line in self._profile.show(f"vch run {self._options.image}"):
            print(line, file=sys.stderr)
        if self._options.timing:
            self._say(self._watch.report())
        if self._options.timing_file:
            try:
                Path(self._options.timing_file).write_text(self._watch.document())
            except OSError as error:
                self._say(f"write timing: {self._options.timing_file}: {error.strerror}")

    def _serve(self, machine: Machine, session: Session, stop_signal: int) -> int:
        """Until the process has ended and its output is written."""

        def kill() -> None:
            self._killed_by_user = True
            machine.abandon_output()
            machine.kill()

        def stop() -> None:
            if session.ended.done:  # only somebody who does not read our output keeps us
                machine.abandon_output()
            elif self._options.stop_seconds < 0:
                forward(stop_signal)
            else:
                machine.stop(self._options.stop_seconds)

        def resize() -> None:
            size = terminal.size(0, 1, 2)
            if self._options.tty and size is not None:
                machine.tell(Resize(session=PRIMARY, rows=size.rows, columns=size.columns))

        def forward(number: int) -> None:
            machine.tell(Signal(session=PRIMARY, number=number))

        self._router.running(Actions(stop, kill, forward, resize))
        resize()  # it may have changed since the size was read for the spec
        try:
            code = session.wait()
        except MachineLostError:
            if self._killed_by_user:
                return EXIT_KILLED
            raise
        finally:  # asked to stop once more, we are at it; asked twice, there is no time to power off properly
            self._router.running(Actions(_nothing, machine.kill, _ignore, _nothing))
        for complaint in session.complaints:
            self._say(complaint)
        return code

    def _stdio(self) -> Stdio:
        options = self._options
        return Stdio(stdin=0 if options.interactive else None, stdout=1, stderr=None if options.tty else 2)

    def _debug(self, line: str) -> None:
        if self._options.debug:
            self._say(f"{self._elapsed()}{line}")

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._watch.began:6.2f} s  "

    def _notice(self, line: str) -> None:
        """From the machine's thread, at any time: a terminal in raw mode wants to be told to begin a line."""
        self._say(line + ("\r" if self._options.tty and os.isatty(2) else ""))

    @staticmethod
    def _say(line: str) -> None:
        print(f"vch: {line}", file=sys.stderr)


def _nothing() -> None:
    """A signal that changes nothing any more."""


def _ignore(_number: int) -> None:
    """A signal for a process that is gone."""


def _check(options: RunOptions, settings: Settings) -> dict[str, str]:
    """What can be refused before anything is done; gives what `check` does."""
    servers = check(options, settings)
    if options.tty and options.interactive and not os.isatty(0):
        raise UsageError("the input device is not a TTY")
    return servers
