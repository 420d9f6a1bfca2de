"""Answers to the requests that change the network of a running container (tether/link/late_messages.py)."""

from tether.faults import TetherError, fault_of
from tether.link.late_messages import AddInterface, Announce, InterfaceUp, RemoveInterface, SetNames
from tether.link.messages import Done
from tether.link.record import Record
from tether.net.livenet import LiveNetwork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.agent import Agent


def take(agent: "Agent", id: int, message: Record) -> None:
    """Does what it asks, and answers.  Raises TetherError, or OSError."""
    network = _network(agent)
    if isinstance(message, AddInterface):
        network.add(message.interface, lambda outcome: _answer(agent, id, outcome))
        return
    if isinstance(message, RemoveInterface):
        network.remove(message.mac)
    elif isinstance(message, SetNames):
        network.rename(message)
    else:
        assert isinstance(message, Announce)
        network.announce()
    agent.endpoint.answer(id, Done())


def _network(agent: "Agent") -> LiveNetwork:
    _ = agent.place  # raises TetherError unless the container runs
    assert agent.container is not None
    return agent.container.live_network(agent.reactor)


def _answer(agent: "Agent", id: int, outcome: InterfaceUp | TetherError) -> None:
    agent.endpoint.answer(id, fault_of("add interface", outcome) if isinstance(outcome, TetherError) else outcome)
