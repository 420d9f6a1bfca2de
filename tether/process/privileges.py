"""What a process is given or denied beyond its user: limits, capabilities, priorities.  Imported when a spec asks.

`plan` is made before the fork, so that what a spec has wrong is the Fault of its request.  The child then calls
`before_user` as root, and `after_user` when it is who it is to be: raising a limit takes CAP_SYS_RESOURCE and dropping
a capability CAP_SETPCAP, so nothing of this can be done later.

Capabilities are as Docker sets them, by the rules of capabilities(7): root's are the bounding set, because execve gives
root what is in it; everybody else loses all with the change of the user, and keeps only what is ambient.
"""

import errno
import os

from tether.faults import TetherError
from tether.kernel.syscalls import (
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    capset,
    prctl,
    set_limit,
)
from tether.link.record import Record
from tether.spec import CAPABILITIES, LIMITS, Process

MOST_CAPABILITIES = 64  # bits of a set; the kernel has fewer and says EINVAL beyond its last
OOM_SCORE_ADJ = "/proc/self/oom_score_adj"


class Plan(Record):
    """What to do, in numbers of the kernel.  `kept` is None where the bounding set stays."""

    limits: tuple[tuple[int, ...], ...] = ()
    kept: tuple[int, ...] | None = None
    ambient: tuple[int, ...] = ()
    no_new_privileges: bool = False
    oom_score_adj: int = 0
    umask: int = 0
    nice: int = 0

    @property
    def only_bounds(self) -> bool:
        """All but the bounding set is as every process has it."""
        return self == Plan(kept=self.kept, umask=Process.umask)


def plan(process: Process) -> Plan:
    """The plan for a process.  Raises TetherError for a name that is none."""
    kept = None if process.capabilities is None else _numbers(process.capabilities)
    ambient = _numbers(process.ambient)
    if kept is not None and not set(ambient) <= set(kept):
        raise TetherError("process.ambient", "has more than process.capabilities", errno.EINVAL)
    return Plan(
        limits=tuple((_number("limit", item.name, LIMITS), item.soft, item.hard) for item in process.limits),
        kept=kept,
        ambient=ambient,
        no_new_privileges=process.no_new_privileges,
        oom_score_adj=process.oom_score_adj,
        umask=process.umask,
        nice=process.nice,
    )


def before_user(todo: Plan) -> None:
    """What only root can do.  Before chroot: /proc is PID 1's own."""
    if todo.oom_score_adj:
        with open(OOM_SCORE_ADJ, "wb", buffering=0) as score:
            score.write(b"%d" % todo.oom_score_adj)
    for resource, soft, hard in todo.limits:
        set_limit(resource, soft, hard)
    if todo.nice:
        os.setpriority(os.PRIO_PROCESS, 0, todo.nice)
    os.umask(todo.umask)
    if todo.kept is not None:
        drop_all_but(todo.kept)
    if todo.ambient:
        prctl(PR_SET_KEEPCAPS, 1)


def after_user(todo: Plan, uid: int) -> None:
    """What the change of the user would undo."""
    if todo.ambient and uid:
        kept = sum(1 << number for number in todo.ambient)
        capset(kept, kept, kept)
        for number in todo.ambient:
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
    if todo.no_new_privileges:
        prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_all_but(kept: tuple[int, ...]) -> None:
    """Takes capabilities out of the bounding set, those included that are newer than our names."""
    for number in range(MOST_CAPABILITIES):
        if number not in kept:
            try:
                prctl(PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return  # the kernel has no more


def _numbers(names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(_number("capability", name, CAPABILITIES) for name in names)


def _number(kind: str, name: str, names: tuple[str, ...]) -> int:
    """The number of a name.  Raises TetherError."""
    if name not in names:
        raise TetherError(f"{kind} {name}", "does not exist", errno.EINVAL, f"there are {', '.join(names)}")
    return names.index(name)
