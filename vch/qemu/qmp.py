"""QEMU's monitor protocol, without input or output: bytes in, events out (QEMU documentation, docs/interop/qmp-spec).

Why not the library qemu.qmp: it is built on asyncio, whose import alone (80 ms) is more than everything else that
`vch run` does before QEMU runs, and it wants to own the loop that the link already has.  What is needed of the
protocol is this page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MAX_LINE = 4 << 20  # bytes; the longest answers (query-named-block-nodes) have a few hundred KiB


class QmpEvent(NamedTuple):
    """Something QEMU tells unasked: SHUTDOWN, BLOCK_IO_ERROR, DEVICE_DELETED..."""

    name: str
    data: Mapping[str, Any]


class QmpAnswer(NamedTuple):
    """What a command returned, or why it failed."""

    command: str
    value: Any = None
    error: str = ""


Callback = Callable[[QmpAnswer], None]


class QmpProtocolError(Exception):
    """The monitor said something that is no QMP."""


class Qmp:
    """One monitor connection.  Feed what arrives to `receive`, send what `transmit` gives."""

    def __init__(self) -> None:
        self._incoming, self._outgoing = bytearray(), bytearray()
        self._waiting: list[tuple[str, Callback | None]] = []
        self.greeting: Mapping[str, Any] | None = None
        # QEMU reads ahead: there is no need to see the greeting before the first command is sent.
        self.execute("qmp_capabilities")

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, done: Callback | None = None) -> None:
        """Queues a command.  Answers come in the order of the commands."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = dict(arguments)
        self._outgoing += json.dumps(request).encode() + b"\n"
        self._waiting.append((command, done))

    def transmit(self) -> bytes:
        """What is to be sent now; it counts as sent."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def receive(self, data: bytes) -> list[QmpEvent]:
        """Takes what arrived: calls back for answers, returns events."""
        self._incoming += data
        events = []
        while (end := self._incoming.find(b"\n")) >= 0:
            line = bytes(self._incoming[:end])
            del self._incoming[: end + 1]
            if line.strip():
                events += self._message(line)
        if len(self._incoming) > MAX_LINE:
            raise QmpProtocolError(f"a line of more than {MAX_LINE} bytes")
        return events

    def closed(self, why: str) -> None:
        """The monitor is gone: whatever was asked has failed."""
        waiting, self._waiting = self._waiting, []
        for command, done in waiting:
            if done is not None:
                done(QmpAnswer(command, error=why))

    def _message(self, line: bytes) -> list[QmpEvent]:
        try:
            message = json.loads(line)
        except ValueError as error:
            raise QmpProtocolError(f"not JSON: {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise QmpProtocolError(f"not an object: {line[:80]!r}")
        if "event" in message:
            data = message.get("data")
            return [QmpEvent(str(message["event"]), data if isinstance(data, dict) else {})]
        if "QMP" in message:
            self.greeting = message["QMP"]
        elif self._waiting:
            command, done = self._waiting.pop(0)
            if done is not None:
                problem = message.get("error")
                why = str(problem.get("desc", problem)) if isinstance(problem, dict) else ""
                done(QmpAnswer(command, message.get("return"), why))
        else:
            raise QmpProtocolError(f"an answer that nobody asked for: {line[:80]!r}")
        return []
