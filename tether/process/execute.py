"""Starting one process in the container: fork, become what the spec says, execve; or without the fork.

The ordinary process is started by a thread (tether/process/starters.py), which costs a fifth.  The child of a fork is
for what a thread cannot do, and for every error.  Either way, whatever follows a path of the container or reads its
files happens behind chroot and not in PID 1's loop: a hostile image can hold up that child, or that thread, only.  The
child tells how far it came through a pipe that execve closes.
"""

import errno
import os
from select import POLLIN, poll

from tether.faults import TetherError
from tether.link.record import Record
from tether.process import environment
from tether.process.report import write_report
from tether.process.starters import Begun
from tether.process.terminal import open_terminal, take_terminal
from tether.process.user import account_of, hand_over
from tether.rootfs.furnish import give_console
from tether.spec import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal

    from tether.process.accounts import Account
    from tether.process.namespaces import PidNamespace
    from tether.process.privileges import Plan
    from tether.process.starters import Starters
else:
    import _signal

GIVE_WAY_MS = 20  # what a start takes where the processor is emulated
_FAILED = 127  # exit status of a child that could not execute; nobody looks at it


class Place(Record):
    """Where a process starts: descriptors of the container's root and of its devpts, and the name it has.

    `pids` is set where the container has PIDs of its own, `starters` where it has not.
    """

    root: int
    devpts: int
    hostname: str
    pids: "PidNamespace | None" = None
    starters: "Starters | None" = None


class Child(Record):
    """A process on its way: descriptors of our ends, -1 where there is none.

    `report` ends when execve succeeds (tether/process/report.py); -1 is that it has.  With a terminal `stdin` and
    `stdout` are two descriptors of it and there is no `stderr`.
    """

    pid: int
    report: int
    stdin: int
    stdout: int
    stderr: int
    terminal: int


def spawn(place: Place, process: Process, primary: bool, detached: bool = False) -> Child:
    """Starts `process`.

    The `primary` process gets its working directory made, and its terminal as /dev/console, as in Docker.  A
    `detached` one has /dev/null for all its standard streams.  Raises TetherError for a process that cannot be, OSError
    if there is no memory, process or descriptor left.
    """
    plan = _plan(process)
    if process.idle:
        from tether.process import forked  # noqa: F401 - here, in PID 1: the child has left the folder it would come from
    opened: list[int] = []
    try:
        if detached:
            ours, theirs = _nothing(process, opened)
        elif process.terminal:
            ours, theirs = _terminal(place, process, opened)
        else:
            ours, theirs = _pipes(process, opened)
        if process.terminal and primary:
            give_console(place.root, theirs[0])
        begun = place.starters.start(process, plan, place.hostname, theirs) if place.starters is not None else None
        if begun is None:
            begun = _fork(place, process, theirs, primary=primary, plan=plan)
    except (OSError, TetherError):
        _close(opened)
        raise
    _close([*dict.fromkeys(theirs)])
    terminal = ours[1] if process.terminal else -1  # the end for output: it stays open until the terminal hangs up
    return Child(pid=begun.pid, report=begun.report, stdin=ours[0], stdout=ours[1], stderr=ours[2], terminal=terminal)


def _fork(place: Place, process: Process, stdio: list[int], *, primary: bool, plan: "Plan | None") -> Begun:
    """The way for every process, and the only one that tells what is wrong with it."""
    report, told = os.pipe()
    try:
        pid = os.fork() if place.pids is None else place.pids.fork(primary)
        if not pid:
            _child(place, process, stdio, told, primary=primary, plan=plan)
    except OSError:
        os.close(report)
        raise
    finally:
        os.close(told)
    _give_way(report)
    return Begun(pid=pid, report=report)


def _give_way(report: int) -> None:
    """Lets the child become its program first, if that is quick: until then each page that PID 1 writes to is copied.

    That is an eighth of the instructions of an exec (about 0.5 of 4 million).  It must not take longer: execve reads
    from file systems of the container, which may never answer.
    """
    told = poll()
    told.register(report, POLLIN)
    told.poll(GIVE_WAY_MS)


def _plan(process: Process) -> "Plan | None":
    """What is asked beyond the ordinary; most that is asked costs an import that others do not pay for."""
    asked = (process.limits, process.ambient, process.no_new_privileges, process.oom_score_adj, process.nice)
    if any(asked) or process.capabilities is not None or process.umask != Process.umask:
        from tether.process import privileges  # here, in PID 1: the child has left the folder it would come from

        return privileges.plan(process)
    return None


def _nothing(process: Process, opened: list[int]) -> tuple[list[int], list[int]]:
    """Our three ends, which are none, and the child's, of a process that nobody listens to."""
    if process.terminal or process.stdin:
        raise TetherError("a detached process", "has no terminal and no standard input", errno.EINVAL,
                          "start it without them, or attached")
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    opened.append(null)
    return [-1, -1, -1], [null, null, null]


def _terminal(place: Place, process: Process, opened: list[int]) -> tuple[list[int], list[int]]:
    """Our three ends and the child's, of a terminal."""
    assert process.terminal is not None
    ours, theirs = open_terminal(place.devpts, process.terminal)
    opened += (ours, theirs)
    second = os.dup(ours)  # one for each direction, so that either can be closed alone
    opened.append(second)
    return [ours, second, -1], [theirs, theirs, theirs]


def _pipes(process: Process, opened: list[int]) -> tuple[list[int], list[int]]:
    """Our three ends and the child's, of pipes."""
    if process.stdin:
        their_in, our_in = os.pipe()
        os.set_blocking(our_in, False)
        opened += (their_in, our_in)
    else:
        their_in, our_in = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1
        opened.append(their_in)
    our_out, their_out = os.pipe()
    opened += (our_out, their_out)
    our_err, their_err = os.pipe()
    opened += (our_err, their_err)
    os.set_blocking(our_out, False)
    os.set_blocking(our_err, False)
    return [our_in, our_out, our_err], [their_in, their_out, their_err]


def _close(handles: list[int]) -> None:
    for handle in handles:
        os.close(handle)


def _child(place: Place, process: Process, stdio: list[int], told: int, *, primary: bool, plan: "Plan | None") -> None:
    """The child's whole life; never returns."""
    step = "session"
    try:
        if plan is not None:
            from tether.process import privileges  # imported already, see _plan
        _signal.set_wakeup_fd(-1)  # its signals are not PID 1's business
        os.setsid()
        for number, handle in enumerate(stdio):
            os.dup2(handle, number)
        if process.terminal:
            take_terminal()
        step = "privileges"
        if plan is not None:
            privileges.before_user(plan)
        step = "root"
        _enter_root(place, primary)
        step = "user"
        account = account_of(place.root, process.user, process.groups)
        step = "working directory"
        _enter(process.cwd or b"/", primary)
        step = "user"
        hand_over((0,) if process.terminal else (0, 1, 2), account, process.terminal is not None)
        _become(account)
        step = "privileges"
        if plan is not None:
            privileges.after_user(plan, account.uid)
        if process.idle:
            from tether.process.forked import forget_parent, wait_for_signal  # imported already, see spawn

            forget_parent(set())
            wait_for_signal()
        step = "exec"
        env = environment.merged(process.env, place.hostname, process.terminal is not None, account.home)
        _execute(process.args, env)
    except BaseException as error:  # noqa: BLE001 - it is told to the parent, whatever it is
        write_report(told, step, error)
    finally:
        os._exit(_FAILED)


def _enter_root(place: Place, primary: bool) -> None:
    """Makes the container's root the process's own."""
    if place.pids is not None and not primary:
        place.pids.join()
        return
    os.fchdir(place.root)
    os.chroot(".")
    if place.pids is not None:
        place.pids.furnish()


def _enter(cwd: bytes, make: bool) -> None:
    """Changes to the working directory; one that is missing is made for the primary process, as Docker does."""
    try:
        os.chdir(cwd)
    except FileNotFoundError:
        if not make:
            raise
        os.makedirs(cwd, 0o755, exist_ok=True)
        os.chdir(cwd)


def _become(account: "Account") -> None:
    os.setgroups(account.groups)
    os.setgid(account.gid)
    os.setuid(account.uid)


def _execute(args: tuple[bytes, ...], env: dict[bytes, bytes]) -> None:
    """execvp(3), with errors that say which of the causes of ENOENT and EACCES it was.  Returns only by raising."""
    if not args or not args[0]:
        raise TetherError("command", "is empty", errno.EINVAL, "give a command, or an image that has one")
    refused = b""
    for path in environment.candidates(args[0], env.get(b"PATH", b"")):
        try:
            os.execve(path, args, env)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.isfile(path):
                raise TetherError(os.fsdecode(path), "the interpreter or loader that it names does not exist",
                                  errno.ENOENT, "the image is incomplete, or made for another kind of system") from None
        except PermissionError:
            refused = refused or path
    if refused:
        what = "is a directory" if os.path.isdir(refused) else "permission denied"
        raise TetherError(os.fsdecode(refused), what, errno.EACCES, "the command must be an executable file")
    cause = "no such file or directory" if b"/" in args[0] else "executable file not found in $PATH"
    raise TetherError(os.fsdecode(args[0]), cause, errno.ENOENT, "check the command and the image")
