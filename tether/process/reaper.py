"""The one owner of waitpid(2).

PID 1 inherits every orphan of the VM.  Nobody else in tether waits for a process: whoever started one says so with
`expect`, and is told its wait status.  (posix_spawn(3) collects a child that could not execute, if it is there first.)
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

AT_ONCE = 512  # a turn of the loop reaps at most so many: 100,000 orphans must not keep the link from being served


class Reaper:
    """Collects the dead, without ever blocking."""

    def __init__(self) -> None:
        self._expected: dict[int, Callable[[int], None]] = {}
        self.childless = True  # the last collection found no process at all, alive or dead

    def expect(self, pid: int, told: "Callable[[int], None]") -> None:
        """`told` will be called with the wait status of `pid`."""
        self._expected[pid] = told
        self.childless = False

    def forget(self, pid: int) -> None:
        """Nobody waits for `pid` any more, which has executed nothing and may be gone already."""
        self._expected.pop(pid, None)

    def collect(self) -> bool:
        """Reaps what is dead; true if there may be more."""
        for _ in range(AT_ONCE):
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.childless = True
                return False
            self.childless = False
            if not pid:
                return False
            told = self._expected.pop(pid, None)
            if told is not None:
                told(status)
        return True
