"""The clock while the VM runs: small differences are slewed away, large ones are a step.

A clock that was never wrong by much must not jump back: timers, builds and databases watch it.  One that stood still
while the VM was suspended must jump, or it would be wrong for hours.  And one that is a little behind may: to a program
it looks as if it had not run for that moment.
"""

import struct
import time

from tether.kernel.syscalls import adjtimex
from tether.link.late_messages import ClockSet, SetClock

STEP_BACK_NS = 128_000_000  # the step threshold of ntpd; at 500 us a second less is gone in four minutes
STEP_FORWARD_NS = 30_000_000  # gone in a minute; a clone on a busy host begins with more, and nobody should see that
_NS_PER_US = 1000
_ADJ_OFFSET_SINGLESHOT = 0x8001  # linux/timex.h: as adjtime(3)
_TIMEX = struct.Struct("=I4xq192x")  # struct timex up to `offset`


def set_clock(wanted: SetClock) -> ClockSet:
    """Sets the clock, or has the kernel run it a little faster or slower until it is right.  Raises OSError."""
    behind = wanted.realtime_ns - time.time_ns()
    if must_step(behind):
        time.clock_settime_ns(time.CLOCK_REALTIME, wanted.realtime_ns)
        return ClockSet(behind_ns=behind, stepped=True)
    adjtimex(_TIMEX.pack(_ADJ_OFFSET_SINGLESHOT, behind // _NS_PER_US))
    return ClockSet(behind_ns=behind)


def must_step(behind_ns: int) -> bool:
    """Whether a difference is too large to be slewed."""
    return behind_ns > STEP_FORWARD_NS or behind_ns < -STEP_BACK_NS
