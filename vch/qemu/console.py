"""The machine's console: always read, never believed, the end of it kept for when something goes wrong."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

CONSOLE_LIMIT = 256 << 10  # bytes kept; a boot without "quiet" says about 60 KiB
SHOWN_LINES = 40  # what a message shows of it

_PANIC = r"Kernel panic - not syncing: (.*)"
_HALTED = rb"(?m)^\[ *\d+\.\d+\] reboot: System halted\r?\n"  # kernel/reboot.c, kernel_halt
_HALTED_BYTES = 128  # longer than that line
_TERMINAL_CODES = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_]|[^\[])"
_TIMESTAMP = r"^\[ *\d+\.\d+\] "
_DROP_FROM_TEXT = {code: None for code in (*range(32), 127) if code not in (9, 10)}


class Console:
    """A bounded record of what was said.  The guest writes it, so it is data: control codes are taken out."""

    def __init__(self, limit: int = CONSOLE_LIMIT, on_halt: Callable[[], None] = lambda: None) -> None:
        """`on_halt` is called when the kernel says that it halts: then the processors stand still, which ends no QEMU
        and nothing else tells.  Who can forge that line may halt the machine as well."""
        self._limit, self._on_halt = limit, on_halt
        self._chunks: deque[bytes] = deque()
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Takes what arrived; the oldest goes when there is too much."""
        self._chunks.append(data)
        self._size += len(data)
        while self._size - len(self._chunks[0]) >= self._limit:
            self._size -= len(self._chunks.popleft())
        if b"\n" in data and re.search(_HALTED, self._end(_HALTED_BYTES + len(data))):
            self._on_halt()

    @property
    def text(self) -> str:
        """All that is kept, fit for a terminal."""
        raw = b"".join(self._chunks)[-self._limit :].decode("utf-8", "replace")
        return re.sub(_TERMINAL_CODES, "", raw).replace("\r\n", "\n").replace("\r", "\n").translate(_DROP_FROM_TEXT)

    @property
    def lines(self) -> list[str]:
        """Its lines, without empty ones."""
        return [line.rstrip() for line in self.text.split("\n") if line.strip()]

    def tail(self, count: int = SHOWN_LINES) -> str:
        """The last lines."""
        return "\n".join(self.lines[-count:])

    @property
    def panic(self) -> str:
        """What the kernel said when it panicked, or nothing."""
        found = re.findall(_PANIC, self.text)
        return found[-1].strip() if found else ""

    @property
    def last_words(self) -> str:
        """The last line, without the kernel's time stamp."""
        lines = self.lines
        return re.sub(_TIMESTAMP, "", lines[-1]) if lines else ""

    def _end(self, count: int) -> bytes:
        """The last bytes, as they came: however small the pieces were in which they did."""
        pieces: list[bytes] = []
        for chunk in reversed(self._chunks):
            pieces.append(chunk)
            count -= len(chunk)
            if count <= 0:
                break
        return b"".join(reversed(pieces))
