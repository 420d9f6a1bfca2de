"""When the primary process is started again: Docker's restart policies and their back-off (moby, restartmanager).

Nobody is asked: the agent does it also when no appliance is there.  Imported when a spec has a policy.
"""

from tether.link.late_messages import Restarting
from tether.link.messages import Exited, Signalled
from tether.spec import Restart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.process.told import LatestEvent

FIRST_MS = 100
FACTOR = 2
LONGEST_MS = 60_000
LASTING_S = 10.0  # a process that ran so long was no failure to start: the back-off begins anew


class Restarts:
    """The policy of one container, and how often it was used."""

    def __init__(self, policy: Restart, events: "LatestEvent") -> None:
        self._policy, self._events = policy, events
        self._count = self._wait_ms = 0

    def after(self, state: Exited | Signalled, ran_s: float, oom_killed: bool) -> Restarting | None:
        """What happens after an end like this, `ran_s` after the start; None if that is the last end."""
        if ran_s >= LASTING_S:
            self._wait_ms = 0
        self._wait_ms = min(self._wait_ms * FACTOR or FIRST_MS, LONGEST_MS)
        if not self._policy.always:
            failed = not isinstance(state, Exited) or state.code != 0
            if not failed or 0 < self._policy.retries <= self._count:
                return None
        self._count += 1
        return Restarting(state=state, count=self._count, after_ms=self._wait_ms, oom_killed=oom_killed)

    def tell(self, event: Restarting) -> None:
        """Tells the appliance, if it is there."""
        self._events.tell(event)

    def over(self) -> None:
        """There will be no more; what was to be told goes before the end."""
        self._events.hurry()
