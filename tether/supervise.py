"""What keeps a container working while nobody looks: health checks and restarts, where its spec asks for them."""

from tether.execute import Place
from tether.spec import Spec
from tether.told import LatestEvent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.link.endpoint import Endpoint
    from tether.link.reactor import Reactor
    from tether.sessions import Sessions


def supervise(reactor: "Reactor", endpoint: "Endpoint", sessions: "Sessions", place: Place, spec: Spec) -> None:
    """Gives the sessions what the spec asks for.  Before the primary one begins."""
    if spec.health is not None:
        from tether.health import Monitor

        process = spec.process.but(args=spec.health.args, terminal=None, stdin=False)
        sessions.health = Monitor(reactor, sessions.reaper, place, process, check=spec.health,
                                  events=LatestEvent(reactor, endpoint))
    if spec.restart is not None:
        from tether.restarts import Restarts

        sessions.restarts = Restarts(spec.restart, LatestEvent(reactor, endpoint))
