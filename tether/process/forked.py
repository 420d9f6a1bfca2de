"""For children of PID 1 that go on as Python and execute nothing."""

import os

from tether.kernel.pid1 import CHILD, STOPPING

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import NoReturn
else:
    import _signal

_STDERR = 2


def forget_parent(kept: set[int]) -> None:
    """Lets go of PID 1's descriptors but `kept` (an input ends only when all copies are closed) and its signals."""
    _signal.set_wakeup_fd(-1)
    for number in (CHILD, *STOPPING):
        _signal.signal(number, _signal.SIG_DFL)
    low = _STDERR + 1
    for handle in sorted(handle for handle in kept if handle >= low):
        os.closerange(low, handle)
        low = handle + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def wait_for_signal() -> "NoReturn":
    """Until one comes whose action is to end the process."""
    while True:
        _signal.pause()
