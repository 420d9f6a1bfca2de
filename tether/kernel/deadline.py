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
    import signal as _signal
    from collections.abc import Callable
else:
    import _signal


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
    if not _ends_within(seconds, pid):
        raise TetherError(step, f"is not done after {seconds:g} s", errno.ETIMEDOUT,
                          "a disk or a server does not answer; file systems are recovered at the next mount")


def errno_within(seconds: float, work: "Callable[[], None]") -> int:
    """Does `work` in a child, which is killed if it takes too long (ETIMEDOUT); the errno it ended with, or 0.

    The reaper collects the child later; here it is only looked at.  Raises OSError if there can be no child.
    """
    pid = os.fork()
    if not pid:
        code = errno.EIO
        try:
            work()
            code = 0
        except OSError as error:
            code = error.errno or code
        except TetherError as error:
            code = error.number or code
        finally:
            os._exit(code)
    if not _ends_within(seconds, pid):
        os.kill(pid, _signal.SIGKILL)
        return errno.ETIMEDOUT
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return ended.si_status if ended is not None and ended.si_code == os.CLD_EXITED else errno.EIO


def _ends_within(seconds: float, pid: int) -> bool:
    """Waits so long for the end of a child, and leaves it to the reaper."""
    handle = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(handle)
