"""What a guest tells unasked once somebody has asked for it: events of its memory, lines of the agent's log."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from vch.errors import DeadlineError

if TYPE_CHECKING:
    from tether.link.record import Record
    from tether.link.stream import Stream

KEPT_LINES = 10_000
_MAX_LINE = 4096  # bytes without an end of line that are waited for: a guest is not trusted
_READ = 64 << 10


class Observer:
    """`event` and `log` are called in the I/O thread, the others from any."""

    def __init__(self) -> None:
        self.on_event: Callable[[Record], None] | None = None
        self.on_line: Callable[[str], None] | None = None
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._partial = b""
        self._received = 0  # bytes of the log
        self._more = threading.Condition()

    def event(self, message: Record) -> None:
        """An event that is about no session."""
        if self.on_event is not None:
            self.on_event(message)

    def log(self, stream: Stream) -> None:
        """The stream of the agent's log has something."""
        while data := stream.read(_READ):
            *whole, self._partial = (self._partial + data).split(b"\n")
            if len(self._partial) > _MAX_LINE:
                whole, self._partial = [*whole, self._partial], b""
            lines = [line.decode("utf-8", "backslashreplace") for line in whole]
            with self._more:
                self._lines += lines
                self._received += len(data)
                self._more.notify_all()
            on_line = self.on_line
            if on_line is not None:
                for line in lines:
                    on_line(line)

    def lines(self, received: int, seconds: float) -> list[str]:
        """The last lines of the log, once so many bytes of it have come.  Raises DeadlineError."""
        with self._more:
            if not self._more.wait_for(lambda: self._received >= received, seconds):
                raise DeadlineError("log", "agent", f"not all of it came within {seconds:.0f} s")
            return list(self._lines)
