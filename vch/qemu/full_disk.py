"""When the host's disk is full: the machine waits, and goes on when there is room.

QEMU stops a machine whose write finds no space (werror=enospc) and repeats the write when it is told to continue.
Handing the error to the guest instead would abort its journal, after which Linux never gets rid of the dirty pages and
whoever writes hangs for ever.  A wait that takes too long ends the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tether.link.reactor import Reactor, Timer
from vch.errors import MachineLostError
from vch.qemu.qmp import QmpEvent

PATIENCE_SECONDS = 30.0  # long enough to delete something, short enough for a script
RETRY_SECONDS = 1.0
SETTLED_SECONDS = 3.0  # without another error after going on: there is room again


class FullDisk:
    """Watches the monitor's events of one machine, in its I/O thread."""

    def __init__(self, reactor: Reactor, go_on: Callable[[], None], notify: Callable[[str], None]) -> None:
        """`go_on` tells QEMU to continue, `notify` the user."""
        self._reactor, self._go_on, self._notify = reactor, go_on, notify
        self._since: float | None = None  # when the wait began
        self._last = 0.0  # when the last write failed
        self._retrying: Timer | None = None  # one for all the writes that fail together

    def event(self, event: QmpEvent) -> None:
        """Takes a BLOCK_IO_ERROR."""
        if event.data.get("action") != "stop":
            device = event.data.get("node-name") or event.data.get("device")
            self._notify(f"disk {device}: {event.data.get('reason')}: the container gets I/O errors")
            return
        self._last = time.monotonic()
        if self._since is None:
            self._since = self._last
            self._notify(f"the host's disk is full: the machine waits up to {PATIENCE_SECONDS:.0f} s for room")
        if self._retrying is None:
            self._retrying = self._reactor.call_later(RETRY_SECONDS, self._retry)

    def close(self) -> None:
        """The machine has ended."""
        if self._retrying is not None:
            self._retrying.cancel()
        self._since = None

    def _retry(self) -> None:
        self._retrying = None
        if self._since is None:
            return
        if time.monotonic() - self._since > PATIENCE_SECONDS:
            remedy = "make room, or set VCH_HOME to a folder with more"
            raise MachineLostError("run container", "disk", "the host's disk is full", remedy)
        asked = time.monotonic()
        self._go_on()
        self._reactor.call_later(SETTLED_SECONDS, lambda: self._settled(asked))

    def _settled(self, asked: float) -> None:
        if self._last < asked:
            self._since = None
