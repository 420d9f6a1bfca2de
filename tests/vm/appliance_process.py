"""An appliance that can be killed at any moment: feeds a container's `cat` with bytes that follow from their offset,
writes down what comes back, and keeps on disk all that the next process needs to go on.

    python -m tests.vm.appliance_process LINK_SOCKET FOLDER TOTAL

FOLDER/start   the encoded Start to send first
FOLDER/state   written (8 bytes), kept (8 bytes), snapshot; replaced as a whole
FOLDER/output  what came back; what is there beyond `kept` was not covered by the snapshot and comes again
FOLDER/done    made at the end
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import time
from pathlib import Path

from tether.link import cbor
from tether.link.endpoint import Endpoint
from tether.link.events import Aborted, Answered, Connected, Event, Failed, Gone, Overtaken, Refused
from tether.link.hello import APPLIANCE
from tether.link.messages import PRIMARY, Fault, Start, stdin_of, stdout_of
from tether.link.reactor import Reactor
from tether.link.record import decode
from tether.link.wire import Wire
from vch.machine.host_line import DialledLine

BLOCK = 64 << 10
SECONDS = 200.0
_NUMBERS = struct.Struct(">QQ")


def block(number: int) -> bytes:
    """The bytes at offset number * BLOCK: no two blocks are the same."""
    return hashlib.shake_128(number.to_bytes(8, "big")).digest(BLOCK)


class Appliance:
    """One life."""

    def __init__(self, folder: Path, total: int) -> None:
        self._folder, self._total = folder, total
        self._reactor = Reactor()
        state = folder / "state"
        self.written = self.kept = 0
        if state.exists():
            data = state.read_bytes()
            self.written, self.kept = _NUMBERS.unpack_from(data)
            self.endpoint = Endpoint.restore(data[_NUMBERS.size :])
        else:
            self.endpoint = Endpoint(APPLIANCE, durable=True)
        self._output = os.open(folder / "output", os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._output, self.kept)
        os.lseek(self._output, 0, os.SEEK_END)
        self._stdin, self._stdout = self.endpoint.stream(stdin_of(PRIMARY)), self.endpoint.stream(stdout_of(PRIMARY))
        if not state.exists():
            self.endpoint.request(decode(Start, cbor.loads((folder / "start").read_bytes())))
            self._save()
        self._line: DialledLine | None = None
        self._wire = Wire(self._reactor, self.endpoint, self._event, self._lost)

    def run(self, path: str) -> None:
        """Until everything has come back."""
        line = self._line = DialledLine(Path(path), lambda: True, lambda: None)
        line.serve(self._wire)
        deadline = time.monotonic() + SECONDS
        while self.kept < self._total:
            assert time.monotonic() < deadline, f"{self.kept} of {self._total} bytes came back"
            self._reactor.run_once(1.0)
            if self._move():
                self._save()  # before the loop sends what was written, and tells tether what was read
        (self._folder / "done").touch()

    def _move(self) -> bool:
        moved = False
        while data := self._stdout.read(BLOCK):
            os.write(self._output, data)
            self.kept += len(data)
            moved = True
        while self.written < self._total and self._stdin.room >= BLOCK:
            assert self._stdin.write(block(self.written // BLOCK)) == BLOCK
            self.written += BLOCK
            moved = True
        return moved

    def _save(self) -> None:
        snapshot = self.endpoint.snapshot()
        new = self._folder / "state.new"
        new.write_bytes(_NUMBERS.pack(self.written, self.kept) + snapshot)
        new.replace(self._folder / "state")
        self.endpoint.saved(snapshot)

    def _lost(self, _reason: str) -> None:
        if self._line is not None:
            self._line.lost()

    def _event(self, event: Event) -> None:
        if isinstance(event, Connected) and self._line is not None:
            self._line.answered()
        bad = isinstance(event, (Aborted, Failed, Gone, Overtaken, Refused))
        if bad or (isinstance(event, Answered) and isinstance(event.message, Fault)):
            raise AssertionError(f"the link said {event}")


if __name__ == "__main__":
    Appliance(Path(sys.argv[2]), int(sys.argv[3])).run(sys.argv[1])
