"""Two real endpoints and what lies between them, for the tests of the link."""

from tether.link.endpoint import Endpoint
from tether.link.events import Event
from tether.link.hello import APPLIANCE, TETHER
from tether.link.limits import PORT, Limits


class Pair:
    """An appliance and a tether, connected by memory."""

    def __init__(self, limits: Limits = PORT, *, durable: bool = False) -> None:
        self.appliance = Endpoint(APPLIANCE, limits, durable=durable, software="test appliance")
        self.tether = Endpoint(TETHER, limits, software="test tether")
        self.seen: dict[str, list[Event]] = {APPLIANCE: [], TETHER: []}

    def connect(self) -> None:
        """The transport comes up, both ends greet."""
        self.appliance.connected()
        self.tether.connected()
        self.run()

    def disconnect(self) -> None:
        """The transport goes, with all that was under way."""
        self.appliance.disconnected()
        self.tether.disconnected()
        self.collect()

    def run(self) -> None:
        """Moves bytes until nothing moves any more."""
        moved = True
        while moved:
            moved = False
            for source, target in ((self.appliance, self.tether), (self.tether, self.appliance)):
                data = source.transmit()
                if data:
                    moved = True
                    target.receive(data)
        self.collect()

    def settle(self) -> None:
        """As `run`, with time passing: delayed acknowledgements and questions go out too."""
        for _ in range(4):
            self.run()
            for end in (self.appliance, self.tether):
                end.acknowledge()
                end.tick()
        self.run()

    def collect(self) -> None:
        """Keeps the events of both ends in `seen`."""
        for end in (self.appliance, self.tether):
            self.seen[end.role] += end.events()

    def of(self, role: str, kind: type[Event]) -> list[Event]:
        """The events of one kind that one end has seen."""
        return [event for event in self.seen[role] if isinstance(event, kind)]
