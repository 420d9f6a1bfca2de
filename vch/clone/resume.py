"""Bringing a clone to life: what QEMU is told, from the moment it waits for its state to the moment the guest runs.

    capabilities, disks' files ─► migrate-incoming ─► completed ─► disks plugged in ─► Wake on the link ─► cont

The guest sees its disks in the instant that it wakes, and finds the Wake as the first thing on its link.  Disks that
its template had are there from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vch.errors import BootError
from vch.qemu.config import MachineConfig, Role, blockdev, disk_device, node_name, removable, there_at_once
from vch.qemu.qmp import QmpAnswer, QmpEvent

CAPABILITIES = [{"capability": "x-ignore-shared", "state": True}, {"capability": "events", "state": True}]
Execute = Callable[[str, Mapping[str, Any] | None, Callable[[QmpAnswer], None] | None], None]


class Resume:
    """One clone on its way, in its machine's I/O thread."""

    def __init__(self, config: MachineConfig, execute: Execute, wake: Callable[[], None]) -> None:
        """`execute` gives a command to QEMU; `wake` writes the Wake, and is called when nothing can go wrong any more
        but in the guest."""
        self._config, self._execute, self._wake = config, execute, wake
        self._missing = tuple(enumerate(config.drives))[there_at_once(config) :]
        self._plugged = 0
        self._over = False

    def abandon(self) -> None:
        """QEMU has ended: what becomes of commands that it did not answer is no error of theirs."""
        self._over = True

    def begin(self) -> None:
        """Tells QEMU everything that it can be told at once."""
        assert self._config.frozen is not None
        self._tell("migrate-set-capabilities", {"capabilities": CAPABILITIES})
        block = removable if self._config.role is Role.GROWN else blockdev
        for index, drive in self._missing:
            self._tell("blockdev-add", block(node_name(index), drive))
        self._tell("migrate-incoming", {"uri": f"fd:{self._config.frozen.state}"})

    def event(self, event: QmpEvent) -> None:
        """Takes a MIGRATION event.  Raises BootError for a state that does not fit."""
        status = event.data.get("status")
        if status == "failed":  # QEMU 7.2 means to exit then, and may never come to it
            raise BootError("clone", "QEMU", "it cannot take on the state of the template")
        if status != "completed":
            return
        for index, drive in self._missing:
            device = {**disk_device(index, drive), "id": f"disk{index}"}
            self._tell("device_add", device, self._plug)
        if not self._missing:
            self._run()

    def _plug(self) -> None:
        self._plugged += 1
        if self._plugged == len(self._missing):
            self._run()

    def _run(self) -> None:
        self._wake()
        self._tell("cont")

    def _tell(
        self, command: str, arguments: Mapping[str, Any] | None = None, then: Callable[[], None] | None = None
    ) -> None:
        def answered(answer: QmpAnswer) -> None:
            if self._over:
                return
            if answer.error:
                raise BootError("clone", "QEMU", f"{command}: {answer.error}")
            if then is not None:
                then()

        self._execute(command, arguments, answered)
