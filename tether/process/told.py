"""Events of which only the latest matters: each replaces the one before it until the appliance has taken that.

A container may run for weeks without an appliance.  Its restarts and health checks must then not fill the control
stream, in which the end of the container has to find room.
"""

from tether.link.errors import CongestedError
from tether.link.messages import CONTROL_STREAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.link.endpoint import Endpoint
    from tether.link.reactor import Reactor
    from tether.link.record import Record

LOOK_AGAIN_S = 1.0  # while an event waits; whoever comes back to the link has it so soon


class LatestEvent:
    """One kind of event."""

    def __init__(self, reactor: "Reactor", endpoint: "Endpoint") -> None:
        self._reactor, self._endpoint = reactor, endpoint
        self._held: Record | None = None
        self._looking = False

    def tell(self, event: "Record") -> None:
        """Sends it as soon as the appliance has taken what was sent before."""
        self._held = event
        self._look()

    def hurry(self) -> None:
        """Sends what waits now, because something follows that must not come before it."""
        held, self._held = self._held, None
        if held is not None:
            try:
                self._endpoint.notify(held)
            except CongestedError:
                return  # what follows says more, and needs the room

    def _look(self) -> None:
        if self._held is None:
            return
        if self._endpoint.mux.stream(CONTROL_STREAM).drained:
            held, self._held = self._held, None
            try:
                self._endpoint.notify(held)
                return
            except CongestedError:  # it is longer than the room that there is; it will be told when there is more
                self._held = held
        if not self._looking:
            self._looking = True
            self._reactor.call_later(LOOK_AGAIN_S, self._look_again)

    def _look_again(self) -> None:
        self._looking = False
        self._look()
