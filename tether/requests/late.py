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
    from tether.requests.worker import Desk


def take_late(agent: "Agent", id: int, message: Record) -> None:
    """Answers a request.  Raises TetherError or OSError."""
    kind = type(message)
    work = _WORKS.get(kind)
    if work is not None:
        _in_worker(agent, id, message, work)
        return
    take = _TAKERS.get(kind)
    if take is None:
        raise TetherError(kind.__name__, "nobody here answers this request")
    take(agent, id, message)


# done by a child that is forked for it, in the container's root


def _in_worker(agent: "Agent", id: int, message: Record, work: "Callable[[Desk, Record], Record]") -> None:
    from tether.requests.worker import Worker

    sends = message.session if isinstance(message, (late_messages.Get, late_messages.Diff)) else 0
    takes = message.session if isinstance(message, late_messages.Put) else 0
    step = type(message).__name__.lower()
    Worker(step, lambda desk: work(desk, message)).start(agent, id, sends=sends, takes=takes)


def _stat(desk: "Desk", message: Record) -> Record:
    from tether.requests.stat import file_stat

    assert isinstance(message, late_messages.Stat)
    return file_stat(desk, message.path)


def _get(desk: "Desk", message: Record) -> Record:
    from tether.requests.transfer import get

    assert isinstance(message, late_messages.Get)
    return get(desk, message.path)


def _put(desk: "Desk", message: Record) -> Record:
    from tether.requests.transfer import put

    assert isinstance(message, late_messages.Put)
    return put(desk, message)


def _diff(desk: "Desk", _message: Record) -> Record:
    from tether.requests.diff import diff

    return diff(desk)


def _top(desk: "Desk", message: Record) -> Record:
    from tether.requests.processes import table

    assert isinstance(message, late_messages.Top)
    return table(desk, message.columns)


def _stats(_desk: "Desk", _message: Record) -> Record:
    from tether.requests.facts import statistics

    return statistics()


# done by PID 1


def _network(agent: "Agent", id: int, message: Record) -> None:
    from tether.requests.network import take

    take(agent, id, message)


def _life(agent: "Agent", id: int, message: Record) -> None:
    from tether.requests.life import take

    take(agent, id, message)


def _watch_memory(agent: "Agent", id: int, _message: Record) -> None:
    from tether.link.messages import Done
    from tether.requests.memorywatch import MemoryWatch

    if agent.memory_watch is None:
        agent.memory_watch = MemoryWatch(agent)
    agent.endpoint.answer(id, Done())


def _send_log(agent: "Agent", id: int, message: Record) -> None:
    from tether.requests.log import send_log

    assert isinstance(message, late_messages.SendLog)
    if message.level not in late_messages.LEVELS:
        raise TetherError(message.level, "no such level", hint=f"levels are {', '.join(late_messages.LEVELS)}")
    agent.endpoint.answer(id, late_messages.LogSent(bytes=send_log(agent, message.level).sent))


_WORKS: "dict[type[Record], Callable[[Desk, Record], Record]]" = {
    late_messages.Stat: _stat,
    late_messages.Get: _get,
    late_messages.Put: _put,
    late_messages.Diff: _diff,
    late_messages.Top: _top,
    late_messages.Stats: _stats,
}
_TAKERS: "dict[type[Record], Callable[[Agent, int, Record], None]]" = {
    late_messages.AddInterface: _network,
    late_messages.RemoveInterface: _network,
    late_messages.SetNames: _network,
    late_messages.Announce: _network,
    late_messages.Freeze: _life,
    late_messages.Thaw: _life,
    late_messages.SetClock: _life,
    late_messages.AttachVolume: _life,
    late_messages.DetachVolume: _life,
    late_messages.UseHardware: _life,
    late_messages.WatchMemory: _watch_memory,
    late_messages.SendLog: _send_log,
}
