"""A guest's clock kept right while it runs, in the I/O thread of its machine.

The guest is first asked what time it has.  Only an answer that came quickly says how wrong its clock is, and that the
time sent next will not arrive late: over a link that was cut, or to a machine that was stopped, an old time would be
delivered as the new one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tether.link.messages import Ping, Pong

if TYPE_CHECKING:
    from tether.link.record import Record
    from vch.machine.driver import Driver
    from vch.promise import Promise

EVERY_SECONDS = 300.0  # a crystal drifts 50 ppm, which are 15 ms in this time
QUICK_NS = 1_000_000_000
# The time that came with the spec is as old as its way was long, on a host that is busy.  What a program notices is
# mended soon, the rest by the regular check; most machines do not live to see either, and pay for none.
SOON_SECONDS = 1.0
NOTICED_NS = 20_000_000
SOON_CHECKS = 10  # as long as it is wrong, or cannot be told: the way of a correction may have been long, too


class ClockKeeper:
    """Asks, and corrects.  One question at a time."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._asked_ns = 0
        self._soon = SOON_CHECKS  # how many more there may be

    def begin(self) -> None:
        """Checks soon, and from time to time until the machine ends; from any thread."""
        self._driver.post(lambda: self._later(SOON_SECONDS))

    def _later(self, seconds: float) -> None:
        self._driver.reactor.call_later(seconds, self.check)

    def check(self) -> None:
        """Asks the guest for its time."""
        self._asked_ns = time.time_ns()
        self._driver.loop_request(Ping(), self._answered)

    def _answered(self, answer: Promise[Record]) -> None:
        if answer.error is not None:
            return
        pong = answer.result(0)
        assert isinstance(pong, Pong)
        now = time.time_ns()
        wrong = is_wrong(self._asked_ns, pong.realtime_ns, now, NOTICED_NS if self._soon else 0)
        if wrong:
            from tether.link.late_messages import SetClock

            self._driver.loop_request(SetClock(realtime_ns=time.time_ns()))
        again = wrong or now - self._asked_ns >= QUICK_NS
        self._soon = self._soon - 1 if again and self._soon else 0
        self._later(SOON_SECONDS if self._soon else EVERY_SECONDS)


def is_wrong(asked_ns: int, guest_ns: int, answered_ns: int, tolerance_ns: int = 0) -> bool:
    """Whether a guest's time is off by more than `tolerance_ns` whenever between question and answer it was read.

    An answer that took long says nothing.
    """
    right = asked_ns - tolerance_ns <= guest_ns <= answered_ns + tolerance_ns
    return answered_ns - asked_ns < QUICK_NS and not right
