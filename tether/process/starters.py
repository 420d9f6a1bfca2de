"""Starting an ordinary process without a copy of PID 1: by a thread of it that lives in the container's root.

fork copies the page tables of PID 1, and then every page that it or the child writes to: four fifths of what starting
a process costs.  A child that borrows its parent's memory until it executes (tether/process/posixspawn.py) needs none
of that, but its parent stands still meanwhile, and execve reads from file systems of the container, which may never
answer.  So the parent is a thread, for which PID 1's loop waits a moment and no longer.  In Linux a thread has a root,
a directory, credentials and a bounding set of its own: it is the C library that gives them to all threads, so the
system calls are made without it (unshare(2), credentials(7)).

A process of another user is started by the thread as that user, with root as saved user ID, to come back by.  execve
puts the effective ID in its place, and leaves no capability to who is not root (capabilities(7)).  While it is there no
process of that user can trace the thread or its child, which are in PID 1's memory: all three IDs would have to be the
tracer's (ptrace(2)).

What a thread cannot do, and whatever fails here, is left to the child of a fork (tether/process/execute.py), which
tells errors apart.
"""

import _thread
import errno
import os
from _thread import allocate_lock

from tether.faults import TetherError
from tether.kernel import files
from tether.kernel.syscalls import CLONE_FS, M_ARENA_MAX, mallopt, set_gid, set_groups, set_uid, unshare
from tether.link.record import Record
from tether.process import environment
from tether.process.posixspawn import ProgramSpawner
from tether.process.report import write_report
from tether.process.user import Accounts, hand_over

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal

    from tether.process.accounts import Account
    from tether.process.privileges import Plan
    from tether.spec import Process
else:
    import _signal

MOST_STARTERS = 2  # sets of capabilities: that of the spec, and that of an exec which has them all
PATIENCE_S = 0.2  # ten times what a start takes where the processor is emulated; few ever wait so long in vain
RECHECK_S = 0.001
CHILD_S = 5.0  # for a child to be made, which waits for nobody
CLOSE_S = 1.0  # for a thread to leave the container
SMALL_DATABASE = 16384  # bytes: what is made of a longer one is not for the memory of PID 1
_TASKS = "/proc/self/task"
_VFORKED = b"D"  # state of a thread that waits for its child to execute (proc(5))


class Begun(Record):
    """A process that is there.  `report` is a pipe to be read (tether/process/report.py), or -1: it runs already."""

    pid: int
    report: int = -1


class Order:
    """A process to start.  Whoever acquires `claim` decides: the thread, which does, or who will not wait for it."""

    def __init__(self, process: "Process", hostname: str, stdio: list[int]) -> None:
        self.process, self.hostname, self.stdio = process, hostname, stdio
        self.claim = allocate_lock()
        self.pid = 0  # of the process, once the order is done; 0 if it has failed
        self._turn = allocate_lock()
        self._done = False
        self._told = -1

    def finish(self, error: Exception | None) -> None:
        """By the thread, at the end: tells who waits at a pipe."""
        with self._turn:
            self._done = True
            if self._told >= 0:
                if error is not None:
                    write_report(self._told, "exec", error)
                os.close(self._told)

    def report_to(self, told: int) -> bool:
        """Has the end be told through this pipe; False if it is over already."""
        with self._turn:
            if not self._done:
                self._told = told
            return not self._done

    @property
    def begun(self) -> Begun | None:
        """The result, once it is done."""
        return Begun(pid=self.pid) if self.pid else None


class Starters:
    """The threads of one container, made when they are wanted."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._starters: dict[tuple[int, ...] | None, Starter] = {}
        # Not every kernel says which child a thread waits for (CONFIG_PROC_CHILDREN).
        self._possible = os.path.exists(f"{_TASKS}/{os.getpid()}/children")

    def start(self, process: "Process", plan: "Plan | None", hostname: str, stdio: list[int]) -> Begun | None:
        """The process, with `stdio` as its standard streams; None if a fork is to do it.

        Raises OSError and TetherError only for what the fork could not do either.
        """
        if not self._possible or process.terminal is not None or process.idle or (plan and not plan.only_bounds):
            return None
        kept = plan.kept if plan else None
        starter = self._starters.get(kept) or self.make_ready(kept)
        return starter.start(Order(process, hostname, stdio)) if starter is not None else None

    def make_ready(self, kept: tuple[int, ...] | None) -> "Starter | None":
        """The thread for processes with this bounding set; None if it cannot be."""
        if len(self._starters) == MOST_STARTERS:
            return None
        mallopt(M_ARENA_MAX, 1)  # no heap of its own for each thread
        try:
            starter = self._starters[kept] = Starter(self._root, kept)
        except RuntimeError:  # there is no memory for a thread
            return None
        return starter

    def close(self) -> None:
        """The threads leave the container, so that it can be unmounted."""
        for starter in self._starters.values():
            starter.close()
        self._starters.clear()
        self._possible = False


class Starter:
    """One thread, for processes with one bounding set: what has been dropped from that does not come back."""

    def __init__(self, root: int, kept: tuple[int, ...] | None) -> None:
        self._root, self._kept = root, kept
        self._accounts = Accounts(root, SMALL_DATABASE)
        self._order: Order | None = None
        self._go, self._done = allocate_lock(), allocate_lock()
        self._go.acquire()
        self._done.acquire()
        self._busy = False  # with an order that nobody waits for any more
        self._ended = False
        self._way_out = -1
        self._thread = 0  # its number in the kernel
        self._groups: tuple[int, ...] = (0,)
        self._gid = 0
        _thread.start_new_thread(self._run, ())

    # what the loop of PID 1 calls

    def start(self, order: Order) -> Begun | None:
        """See `Starters.start`."""
        if self._ended or (self._busy and not self._done.acquire(False)):
            return None
        self._busy = False
        self._order = order
        self._go.release()
        if self._done.acquire(timeout=PATIENCE_S):
            return order.begun
        self._busy = True
        if order.claim.acquire(False):
            return None  # it still reads /etc/passwd, and will do nothing more
        return self._late(order)

    def close(self) -> None:
        """Ends the thread, unless it stands still for good."""
        if self._busy and not self._done.acquire(timeout=CLOSE_S):
            return
        self._order, self._way_out = None, os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._go.release()
        if self._done.acquire(timeout=CLOSE_S):
            os.close(self._way_out)

    def _late(self, order: Order) -> Begun | None:
        """What is known of a start that takes long: the child is there, whatever it waits for.

        Raises TetherError if not even that is known; its streams are closed then.
        """
        for _ in range(int(CHILD_S / RECHECK_S)):
            pid = self._child()
            if pid:
                report, told = os.pipe()
                if order.report_to(told):
                    return Begun(pid=pid, report=report)
                os.close(report)
                os.close(told)
                return order.begun
            if self._done.acquire(timeout=RECHECK_S):
                self._busy = False
                return order.begun
        raise TetherError("process", "does not begin", errno.ETIMEDOUT)

    def _child(self) -> int:
        """PID of the child that the thread waits for; 0 if it does not wait."""
        place = f"{_TASKS}/{self._thread}"
        if files.read(f"{place}/stat").rpartition(b") ")[2][:1] != _VFORKED:
            return 0
        children = files.read(f"{place}/children").split()
        return int(children[-1]) if children else 0  # the kernel lists them by age

    # in the thread

    def _run(self) -> None:
        """The thread's whole life.  What goes wrong here but for an order, ends it: the interpreter says so."""
        try:
            self._enter()
            spawner = ProgramSpawner()
            self._go.acquire()
            while self._order is not None:
                order, self._order = self._order, None
                self._take(spawner, order)
                self._done.release()
                self._go.acquire()
            os.fchdir(self._way_out)
            os.chroot(".")
        finally:
            self._ended = True
            self._done.release()

    def _enter(self) -> None:
        """Makes the thread one of the container's: its root, and what its processes may have."""
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())  # the loop waits for them
        self._thread = _thread.get_native_id()
        unshare(CLONE_FS)
        os.fchdir(self._root)
        os.chroot(".")
        if self._kept is not None:
            from tether.process.privileges import drop_all_but  # imported already, or nothing would be asked

            drop_all_but(self._kept)

    def _take(self, spawner: ProgramSpawner, order: Order) -> None:
        """Does an order."""
        failure: Exception | None = None
        try:
            account = self._accounts.of(order.process.user, order.process.groups)
            env = environment.merged(order.process.env, order.hostname, False, account.home)
            look_ahead(order.process, env)
            if order.claim.acquire(False):
                order.pid = self._start(spawner, order, account, env)
        except (OSError, TetherError, ValueError) as error:
            failure = error
        order.finish(failure)

    def _start(self, spawner: ProgramSpawner, order: Order, account: "Account", env: dict[bytes, bytes]) -> int:
        process = order.process
        hand_over(order.stdio, account, terminal=False)
        if account.groups != self._groups:
            set_groups(account.groups)
            self._groups = account.groups
        if account.gid != self._gid:
            set_gid(account.gid)
            self._gid = account.gid
        if not account.uid:
            return spawner.spawn(process.args, env, process.cwd, order.stdio)
        set_uid(account.uid, saved=0)
        try:
            return spawner.spawn(process.args, env, process.cwd, order.stdio)
        finally:
            set_uid(0, saved=0)


def look_ahead(process: "Process", env: dict[bytes, bytes]) -> None:
    """Raises FileNotFoundError for a start that will fail, or needs its working directory made.

    A start that takes long cannot be left to the fork any more once there is a child; before that it can.
    """
    if process.cwd and not os.path.isdir(process.cwd):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), process.cwd)
    for path in environment.candidates(process.args[0] if process.args else b"", env.get(b"PATH", b"")):
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
