"""What keeps a container working while nobody looks: health checks and restarts, where its spec asks for them."""

from tether.process.execute import Place
from tether.process.told import LatestEvent
from tether.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.link.endpoint import Endpoint
    from tether.link.reactor import Reactor
    from tether.process.sessions import Sessions


def supervise(reactor: "Reactor", endpoint: "Endpoint", sessions: "Sessions", place: Place, spec: Spec) -> None:
    """Gives the sessions what the spec asks for.  Before the primary one begins."""
    if spec.health is not None:
        from tether.process.health import Monitor

        process = spec.process.but(args=spec.health.args, terminal=None, stdin=False)
        sessions.health = Monitor(reactor, sessions.reaper, place, process, check=spec.health,
                                  events=LatestEvent(reactor, endpoint))
    if spec.restart is not None:
        from tether.process.restarts import Restarts

        sessions.restarts = Restarts(spec.restart, LatestEvent(reactor, endpoint))
