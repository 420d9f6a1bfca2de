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


def _get(agent: "Agent", id: int, message: Record) -> None:
    from tether.worker import Worker

    assert isinstance(message, late_messages.Get)
    path = message.path

    def work(desk: "Desk") -> Record:
        from tether.filetransfer import get

        return get(desk, path)

    Worker("get", work).start(agent, id, sends=message.session)


def _put(agent: "Agent", id: int, message: Record) -> None:
    from tether.worker import Worker

    assert isinstance(message, late_messages.Put)
    wanted = message

    def work(desk: "Desk") -> Record:
        from tether.filetransfer import put

        return put(desk, wanted)

    Worker("put", work).start(agent, id, takes=message.session)


def _diff(agent: "Agent", id: int, message: Record) -> None:
    from tether.worker import Worker

    assert isinstance(message, late_messages.Diff)

    def work(desk: "Desk") -> Record:
        from tether.filediff import diff

        return diff(desk)

    Worker("diff", work).start(agent, id, sends=message.session)


def _life(agent: "Agent", id: int, message: Record) -> None:
    from tether.liferequests import take

    take(agent, id, message)


def _top(agent: "Agent", id: int, message: Record) -> None:
    from tether.worker import Worker

    assert isinstance(message, late_messages.Top)
    columns = message.columns

    def work(desk: "Desk") -> Record:
        from tether.processes import table

        return table(desk, columns)

    Worker("top", work).start(agent, id)


def _stats(agent: "Agent", id: int, _message: Record) -> None:
    from tether.worker import Worker

    def work(_desk: "Desk") -> Record:
        from tether.facts import statistics

        return statistics()

    Worker("stats", work).start(agent, id)


def _watch_memory(agent: "Agent", id: int, _message: Record) -> None:
    from tether.link.messages import Done
    from tether.memorywatch import MemoryWatch

    if agent.memory_watch is None:
        agent.memory_watch = MemoryWatch(agent)
    agent.endpoint.answer(id, Done())


def _send_log(agent: "Agent", id: int, message: Record) -> None:
    from tether.log import send_log

    assert isinstance(message, late_messages.SendLog)
    if message.level not in late_messages.LEVELS:
        raise TetherError(message.level, "no such level", hint=f"levels are {', '.join(late_messages.LEVELS)}")
    agent.endpoint.answer(id, late_messages.LogSent(bytes=send_log(agent, message.level).sent))


_TAKERS: "dict[type[Record], Callable[[Agent, int, Record], None]]" = {
    late_messages.Stat: _stat,
    late_messages.AddInterface: _network,
    late_messages.RemoveInterface: _network,
    late_messages.SetNames: _network,
    late_messages.Announce: _network,
    late_messages.Get: _get,
    late_messages.Put: _put,
    late_messages.Diff: _diff,
    late_messages.Freeze: _life,
    late_messages.Thaw: _life,
    late_messages.SetClock: _life,
    late_messages.AttachVolume: _life,
    late_messages.DetachVolume: _life,
    late_messages.UseHardware: _life,
    late_messages.Top: _top,
    late_messages.Stats: _stats,
    late_messages.WatchMemory: _watch_memory,
    late_messages.SendLog: _send_log,
}
