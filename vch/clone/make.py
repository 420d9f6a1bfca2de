"""Making a template: boot a machine with its memory in a file, wait until its agent waits, freeze it.

    QEMU boots ─► the agent says WAITING on the bare port ─► stop ─► migrate to a file, memory left where it is ─► quit

The guest's memory is the file (`share=on`), so with QEMU's capability x-ignore-shared only the state of the devices is
written, 0.3 MB.  (The template of an image does not boot, but goes on from such a one: vch/clone/grow.py.)
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tether.link.reactor import Reactor
from tether.link.waking import WAITING, Prepare, pack
from vch.clone.key import ROOT_DRIVES, template_of
from vch.clone.resume import CAPABILITIES, Resume
from vch.clone.store import MEMORY, STATE, Facts, Store, describe_files
from vch.errors import BootError, DeadlineError, HostError, MachineError
from vch.machine.explain import Evidence, Stage, explain
from vch.qemu import config as qemu
from vch.qemu.channel import Ends, open_channels, read_channel
from vch.qemu.config import Accelerator, Frozen, MachineConfig
from vch.qemu.console import Console
from vch.qemu.process import QemuProcess
from vch.qemu.qmp import Qmp, QmpAnswer, QmpProtocolError

MIB = 1 << 20
BOOT_SECONDS = {Accelerator.KVM: 30.0, Accelerator.TCG: 180.0}  # as for any machine (vch/machine/machine.py)
FREEZE_SECONDS = 30.0  # 15 to 30 ms on an idle host
SETTLE_SECONDS = 0.05  # from its word to its wait; a template frozen in between is as good, but wakes a little later
SAID_BYTES = 1024  # of what the agent says; its word is 16 bytes long


def make_template(config: MachineConfig, program: str, key: str, store: Store) -> bool:
    """Makes the template that `config` could be a clone of; False if another process is making it.

    Raises OperationError if it cannot be made here; nothing is left of it then.
    """
    room, wanted = store.room(), config.memory_mib * MIB
    if room < wanted:  # a guest that finds its memory full is killed by SIGBUS: better not even to begin
        cause = f"{room // MIB} MiB are free, and the memory of the template may take {config.memory_mib}"
        raise HostError("make template", str(store.folder), cause, "set VCH_TEMPLATES to a folder with more room")
    with store.making(key) as scratch:
        if scratch is None:
            return False
        opened: list[int] = []
        try:
            for name in (MEMORY, STATE):
                opened.append(os.open(scratch / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            memory, state = opened
            os.ftruncate(memory, wanted)
            Freezer(template_of(config, Frozen(memory, state)), program, into=state).freeze()
            store.complete(scratch, facts_of(config, key, memory, state))
        except OSError as error:
            raise HostError("make template", str(store.folder), error.strerror or str(error)) from error
        finally:
            for descriptor in opened:
                os.close(descriptor)
    return True


def facts_of(config: MachineConfig, key: str, memory: int, state: int, top: int = -1) -> Facts:
    """The record of a template in these open files; `top` only if it has an image's root."""
    return Facts(
        key=key,
        kernel=Path(os.path.realpath(config.boot.kernel)).parent.name,
        memory_mib=config.memory_mib,
        cpus=config.cpus,
        network=config.network is not None,
        accelerator=config.accelerator.value,
        made=time.time(),
        drives=ROOT_DRIVES if top >= 0 else 0,
        **describe_files(memory, state, top),
    )


class Freezer:
    """The machine while it is made; lives in the thread that makes it."""

    def __init__(self, config: MachineConfig, program: str, *, into: int, prepare: Prepare | None = None) -> None:
        """`into`: the open file for the state of its devices; `prepare`: what one that does not boot is told."""
        self._config, self._program, self._into, self._prepare = config, program, into, prepare
        self._resume: Resume | None = None
        self._reactor, self._console, self._qmp = Reactor(), Console(), Qmp()
        self._said = b""
        self._status = ""  # of the migration
        self._process: QemuProcess | None = None

    def freeze(self) -> None:
        """All of it.  Raises OperationError."""
        ours, theirs = open_channels()
        try:
            command = qemu.command_line(self._config, theirs.channels, self._program)
            self._process = process = QemuProcess(command, qemu.inherited(self._config, theirs.channels))
            theirs.close()
            try:
                self._watch(process, ours)
                if self._prepare is not None:
                    self._go_on(ours.qmp, ours.link, self._prepare)
                self._boot()
                self._migrate(ours.qmp)
            finally:
                process.close()
        finally:
            ours.close()
            theirs.close()
            self._reactor.close()

    def _go_on(self, monitor: socket.socket, link: socket.socket, prepare: Prepare) -> None:
        """It is a clone that is told to prepare instead of being woken."""

        def execute(
            command: str, arguments: Mapping[str, Any] | None, answered: Callable[[QmpAnswer], None] | None
        ) -> None:
            self._qmp.execute(command, arguments, answered)
            monitor.send(self._qmp.transmit())

        self._resume = Resume(self._config, execute, lambda: _send(link, prepare))
        self._resume.begin()

    def _boot(self) -> None:
        """Waits until its agent waits, booted or not."""
        seconds = BOOT_SECONDS[self._config.accelerator]
        self._wait("the template to boot", lambda: WAITING in self._said, seconds)
        self._reactor.run_until(lambda: False, SETTLE_SECONDS)

    def _migrate(self, monitor: socket.socket) -> None:
        self._resume = None
        self._tell(monitor, "stop")
        self._take_disks(monitor)
        self._tell(monitor, "migrate-set-capabilities", {"capabilities": CAPABILITIES})
        self._tell(monitor, "getfd", {"fdname": "state"}, self._into)
        self._tell(monitor, "migrate", {"uri": "fd:state"})
        self._wait("the template to be frozen", lambda: self._status in ("completed", "failed"), FREEZE_SECONDS)
        if self._status == "failed":
            raise self._error(f"QEMU could not write its state; {self._complaint()}")

    def _take_disks(self, monitor: socket.socket) -> None:
        """Puts something of the same size in the place of each disk's file."""
        if not self._config.drives:
            return
        known: list[Mapping[str, Any]] = []
        self._ask(monitor, "query-named-block-nodes", {"flat": True}, known.extend)
        self._wait("its disks", lambda: bool(known), FREEZE_SECONDS)
        sizes = {node["node-name"]: node["image"]["virtual-size"] for node in known}
        for index, drive in enumerate(self._config.drives):
            node = qemu.node_name(index)
            empty = {"driver": "null-co", "node-name": f"{node}-none", "size": sizes[node]}
            self._tell(monitor, "blockdev-add", {**empty, "read-only": drive.read_only})
            self._tell(monitor, "blockdev-reopen", {"options": [qemu.nothing(node, drive)]})

    def _tell(
        self, monitor: socket.socket, command: str, arguments: Mapping[str, Any] | None = None, *files: int
    ) -> None:
        self._ask(monitor, command, arguments, lambda _value: None, *files)

    def _ask(
        self, monitor: socket.socket, command: str, arguments: Mapping[str, Any] | None,
        take: Callable[[Any], None], *files: int,
    ) -> None:  # fmt: skip
        def answered(answer: QmpAnswer) -> None:
            if answer.error:
                raise self._error(f"{command}: {answer.error}")
            take(answer.value)

        self._qmp.execute(command, arguments, answered)
        socket.send_fds(monitor, [self._qmp.transmit()], files)

    def _wait(self, what: str, done: Any, seconds: float) -> None:
        """Runs until `done`, or raises the error that says why it will never be."""
        process = self._process
        assert process is not None
        if self._reactor.run_until(lambda: done() or process.poll() is not None, seconds):
            if not done():
                raise explain(Evidence(Stage.BOOTING, self._console, process.poll()))
            return
        heard = f"; last heard: {self._console.last_words}" if self._console.last_words else ""
        raise DeadlineError("make template", what, f"not within {seconds:.0f} s{heard}", console=self._console.tail())

    def _watch(self, process: QemuProcess, ours: Ends) -> None:
        def take_link(data: bytes) -> None:
            self._said = (self._said + data)[-SAID_BYTES:]

        def over() -> None:
            """The end of the process says what it means."""

        read_channel(self._reactor, ours.qmp, self._take_qmp, over)
        read_channel(self._reactor, ours.link, take_link, over)
        read_channel(self._reactor, ours.console, self._console.feed, over)
        ended = self._reactor.watch(process.pidfd, lambda _ready: ended.close())

    def _take_qmp(self, data: bytes) -> None:
        try:
            for event in self._qmp.receive(data):
                if event.name == "MIGRATION" and self._resume is not None:
                    self._resume.event(event)
                elif event.name == "MIGRATION":
                    self._status = str(event.data.get("status"))
        except QmpProtocolError as error:
            raise MachineError("monitor", "QEMU", str(error), "report it") from error

    def _error(self, cause: str) -> BootError:
        return BootError("make template", "QEMU", cause, console=self._console.tail())

    def _complaint(self) -> str:
        assert self._process is not None
        self._process.read_stderr()
        return self._process.complaint


def _send(link: socket.socket, word: Prepare) -> None:
    """Far less than the buffer of an empty socket takes."""
    link.send(pack(word))
