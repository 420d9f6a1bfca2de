"""What may hang in the kernel, done by a child: PID 1 waits only so long and goes on.

A disk or a server that does not answer keeps whoever waits for it in the kernel, where not even SIGKILL reaches.  On
the way to the power-off PID 1 must not be that process: the reason for the end would never be told.
"""

import errno
import os
import select

from tether.faults import TetherError, fault_of, one_line
from tether.kernel.console import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def do_within(seconds: float, step: str, work: "Callable[[], None]") -> None:
    """Does `work` in a child; what goes wrong there is said on the console.

    Raises TetherError if it is not done after `seconds`.  Where there is no memory for a child it is done here.
    """
    try:
        pid = os.fork()
    except OSError:
        work()
        return
    if not pid:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is said, whatever it is
            say(one_line(fault_of(step, error)))
        finally:
            os._exit(0)
    handle = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if not poll.poll(seconds * 1000):
            raise TetherError(step, f"is not done after {seconds:g} s", errno.ETIMEDOUT,
                              "a disk or a server does not answer; file systems are recovered at the next mount")
    finally:
        os.close(handle)
