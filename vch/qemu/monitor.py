"""QEMU's monitor for other threads than the machine's own: commands with answers, and devices that have gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vch.errors import MachineError
from vch.promise import Promise
from vch.qemu.qmp import QmpAnswer, QmpEvent

Tell = Callable[[str, "Mapping[str, Any] | None", "Callable[[QmpAnswer], None] | None", "tuple[int, ...]"], None]
ANSWER_SECONDS = 60.0  # QEMU answers at once; a host that is busy may keep it from running


class Monitor:
    """`post` has a call made by the machine's I/O thread (False: it has ended), `tell` gives QEMU a command there."""

    def __init__(self, post: Callable[[Callable[[], None]], bool], tell: Tell) -> None:
        self._post, self._tell = post, tell
        self._deletions: dict[str, Promise[None]] = {}

    def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, files: tuple[int, ...] = ()
    ) -> Any:
        """Gives a command, with open files if it wants some, and waits; what it returned.

        Raises MachineError with what QEMU says against it.
        """
        promise: Promise[Any] = Promise(f"QEMU's answer to {command}")

        def answered(answer: QmpAnswer) -> None:
            if answer.error:
                promise.fail(MachineError("monitor", command, answer.error))
            else:
                promise.keep(answer.value)

        if not self._post(lambda: self._tell(command, arguments, answered, files)):
            raise MachineError("monitor", command, "the machine has ended")
        return promise.result(ANSWER_SECONDS)

    def unplug(self, device: str) -> None:
        """Has the guest let go of a device, and waits until it has.  Raises MachineError, or DeadlineError."""
        gone: Promise[None] = Promise(f"the guest to let go of {device}")
        self._deletions[device] = gone
        try:
            self.execute("device_del", {"id": device})
            gone.result(ANSWER_SECONDS)
        finally:
            self._deletions.pop(device, None)

    def event(self, event: QmpEvent) -> None:
        """Something QEMU told; in the I/O thread."""
        gone = self._deletions.get(str(event.data.get("device", ""))) if event.name == "DEVICE_DELETED" else None
        if gone is not None:
            gone.keep(None)
