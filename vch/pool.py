"""Machines that wait: clones that are woken before anybody needs them (docs/clone.md, "Pools").

    with vch.Pool() as pool:
        with vch.Machine("debian:12", pool=pool) as machine:      # the first of its kind starts as usual
            ...
        with vch.Machine("debian:12", pool=pool) as machine:      # this one has been waiting
            ...

A machine that waits has no disks, no published ports and no name: it gets them when it is taken, so one kind
(processors, kernel, network) serves every image.  With `with_root` it has its image's root filesystem mounted already:
it starts in a third of the time, and serves no other image.  Memory that it lacks is plugged in; a kind has the least
that was asked for so far.  Its entropy and clock are given to it again with its spec.

Whoever is taken is replaced, but not before what it was taken for has had time to start; and a host that is short of
memory keeps none.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from vch.clone.origin import Cloning
from vch.errors import OperationError
from vch.machine.machine import Machine
from vch.pool_kind import Kind, kind_of
from vch.qemu.config import MachineConfig

DEFAULT_WARM = 1
REFILL_SECONDS = 1.0  # after a machine was taken; what it was taken for starts within less, emulated too
RETRY_SECONDS = 30.0  # after one could not be started
RESERVE_MIB = 256  # of the host's free memory is left to others
MIB_KIB = 1024


def _silent(_sentence: str) -> None:
    """For who does not want to know."""


class Pool:
    """See the module.  Any thread may call its methods; `close` ends the machines that nobody has taken."""

    def __init__(
        self,
        warm: int = DEFAULT_WARM,
        refill_seconds: float = REFILL_SECONDS,
        on_detail: Callable[[str], None] = _silent,
        *,
        with_root: bool = False,
    ) -> None:
        """`warm` machines of each kind wait; a kind is known from the first machine of it.

        With `with_root` each image is a kind of its own.  `on_detail` hears, from another thread, what becomes of those
        that are to wait.
        """
        self._warm, self._refill_seconds, self._on_detail = warm, refill_seconds, on_detail
        self._with_root = with_root
        self._starting: Machine | None = None
        self._kinds: list[Kind] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="vch pool", daemon=True)
        self._thread.start()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def take(self, config: MachineConfig, home: Path, program: str, cloning: Cloning | None) -> Machine:
        """A machine that is ready for its spec: one that waited if there is one.  Raises OperationError.

        `home` is where unnamed disks are.  The caller closes the machine.
        """
        kind = self._known(kind_of(config, home, program, cloning, with_root=self._with_root))
        try:
            return self._take(kind, config, cloning)
        finally:  # nothing is refilled while somebody waits for a start
            with self._changed:
                kind.due = time.monotonic() + self._refill_seconds
                self._changed.notify_all()

    def _take(self, kind: Kind, config: MachineConfig, cloning: Cloning | None) -> Machine:
        while (machine := self._waiting(kind)) is not None:
            try:
                machine.adopt(config)
                return machine
            except OperationError:  # it had died, or cannot have these ports: the next one, or a new one, says why
                machine.close()
        machine = Machine(config, kind.program, cloning=cloning)
        machine.boot()
        return machine

    def waiting(self) -> int:
        """How many machines wait."""
        with self._changed:
            return sum(len(kind.waiting) for kind in self._kinds)

    def close(self) -> None:
        """Ends every machine that waits; those that were taken are their takers'."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._starting is not None:
                self._starting.kill()
        self._thread.join()
        for kind in self._kinds:
            while kind.waiting:
                kind.waiting.pop().close()

    def _known(self, wanted: Kind) -> Kind:
        """The kind with the most memory that will do; `wanted` itself if there is none yet."""
        with self._changed:
            fit = [kind for kind in self._kinds if kind.covers(wanted)]
            if not fit:
                fit = [wanted]
                self._kinds += fit
            kind = max(fit, key=lambda one: one.config.memory_mib)
            kind.due = math.inf
        return kind

    def _waiting(self, kind: Kind) -> Machine | None:
        with self._changed:
            return kind.waiting.pop(0) if kind.waiting else None

    def _run(self) -> None:
        """The thread that refills."""
        while True:
            with self._changed:
                if self._closed:  # also while a machine was started, when nobody listened
                    return
                kind = self._next()
            if kind is not None:
                self._refill(kind)

    def _next(self) -> Kind | None:
        """The kind that lacks a machine and is due; None after a wait for one."""
        lacking = [kind for kind in self._kinds if len(kind.waiting) < self._warm]
        now = time.monotonic()
        due = [kind for kind in lacking if kind.due <= now]
        if due:
            return due[0]
        first = min((kind.due - now for kind in lacking), default=math.inf)
        self._changed.wait(None if first == math.inf else first)
        return None

    def _refill(self, kind: Kind) -> None:
        if available_mib() < kind.config.memory_mib + RESERVE_MIB:
            kind.due = time.monotonic() + RETRY_SECONDS
            return
        try:
            machine = kind.start(self._on_detail, self._note)
        except OperationError:  # who needs a machine will start one, and hear why that fails
            kind.due = time.monotonic() + RETRY_SECONDS
            return
        with self._changed:
            self._starting = None
            kind.waiting.append(machine)  # `close` finds it there, now or later

    def _note(self, machine: Machine) -> None:
        """`close` kills a machine that is just being started, so as not to wait for it."""
        with self._changed:
            self._starting = machine
            if self._closed:
                machine.kill()


def available_mib() -> int:
    """Memory that the host could give to new programs (proc(5), MemAvailable)."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) // MIB_KIB
    return 0
