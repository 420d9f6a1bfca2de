"""tether's own log, for who asks for it: lines on a stream of the link.

Never blocks and never grows: what does not fit, because nobody reads, is counted and said so later.  Nothing is logged
before somebody asks (SendLog); the steps of the boot are told then.
"""

import time

from tether.faults import one_line
from tether.link.late_messages import LEVELS
from tether.link.messages import LOG_STREAM, Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.agent import Agent
    from tether.link.record import Record
    from tether.link.stream import Stream

DEBUG, INFO, WARNING, ERROR = range(len(LEVELS))
_MAX_LINE = 500
_ANSWER, _EVENT = 1, 2  # kinds of messages, as in tether.link.control
_US = 1_000_000


class Log:
    """Lines `LEVEL SECONDS TEXT`, seconds since the kernel started."""

    def __init__(self, stream: "Stream", level: int) -> None:
        self.level = level
        self.sent = 0
        """Bytes so far."""
        self._stream = stream
        self._lost = 0

    def write(self, level: int, text: str, seconds: float | None = None) -> None:
        """Logs a line, if `level` is high enough and there is room for it."""
        if level < self.level:
            return
        if self._lost and self._line(WARNING, f"{self._lost} lines were lost: nobody read them", None):
            self._lost = 0
        if not self._line(level, text, seconds):
            self._lost += 1

    def _line(self, level: int, text: str, seconds: float | None) -> bool:
        """True if there was room for it."""
        when = time.monotonic() if seconds is None else seconds
        shown = text.replace("\n", " ")[:_MAX_LINE]
        line = f"{LEVELS[level]} {when:.3f} {shown}\n".encode("utf-8", "backslashreplace")
        if self._stream.room < len(line):
            return False
        self._stream.write(line)
        self.sent += len(line)
        return True

    def told(self, kind: int, id: int, message: "Record") -> None:
        """A message has been sent."""
        if isinstance(message, Fault):
            self.write(WARNING, f"answer {id}: {one_line(message)}")
        elif kind == _EVENT:
            self.write(INFO, f"event: {message!r}")
        elif kind == _ANSWER:
            self.write(DEBUG, f"answer {id}: {message!r}")


def send_log(agent: "Agent", name: str) -> Log:
    """Begins to log from this level on, or changes the level."""
    level = LEVELS.index(name)
    if agent.log is not None:
        agent.log.level = level
        return agent.log
    agent.log = log = Log(agent.endpoint.stream(LOG_STREAM), level)
    agent.endpoint.messenger.told = log.told
    for phase in agent.steps.told:
        log.write(INFO, f"step: {phase.name}, {phase.took_us / 1000:.1f} ms", phase.start_us / _US)
    return log
