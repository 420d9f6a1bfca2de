"""Requests that most machines never see: what answers them is imported at the first of them.

tether/agent.py asks here for every request that it does not know itself.  Each function takes the agent, the request's
id and the message, and sees to it that the request gets its one answer; what it raises becomes a Fault.
"""

from tether.faults import TetherError
from tether.link import late_messages
from tether.link.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.agent import Agent
    from tether.worker import Desk


def take_late(agent: "Agent", id: int, message: Record) -> None:
    """Answers a request.  Raises TetherError or OSError."""
    take = _TAKERS.get(type(message))
    if take is None:
        raise TetherError(type(message).__name__, "nobody here answers this request")
    take(agent, id, message)


def _stat(agent: "Agent", id: int, message: Record) -> None:
    from tether.worker import Worker

    assert isinstance(message, late_messages.Stat)
    path = message.path

    def work(desk: "Desk") -> Record:
        from tether.filestat import file_stat

        return file_stat(desk, path)

    Worker("stat", work).start(agent, id)


def _network(agent: "Agent", id: int, message: Record) -> None:
    from tether.netrequests import take

    take(agent, id, message)


_TAKERS: "dict[type[Record], Callable[[Agent, int, Record], None]]" = {
    late_messages.Stat: _stat,
    late_messages.AddInterface: _network,
    late_messages.RemoveInterface: _network,
    late_messages.SetNames: _network,
    late_messages.Announce: _network,
}
