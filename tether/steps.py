"""The steps of the boot diagram: each has a name, is timed, and names itself when it fails."""

import os
import sys
import time

from tether.faults import fault_of
from tether.kernel.console import say
from tether.link.messages import Fault, Phase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class StepFailed(Exception):
    """A step of the boot diagram failed; `fault` says everything."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(fault.step)


class Steps:
    """Times the steps of one boot; `with steps("mount root"):` turns what goes wrong inside into StepFailed."""

    def __init__(self) -> None:
        self._phases: list[Phase] = []
        self.told: tuple[Phase, ...] = ()
        """The phases that were handed out."""
        self.aloud = False
        """Whether each step is said on the console when it begins."""

    def __call__(self, name: str) -> "Step":
        if self.aloud:
            say(f"tether: {name}")
        return Step(name, self._phases)

    def add(self, name: str, start_us: int, took_us: int) -> None:
        """A phase that was timed elsewhere."""
        self._phases.append(Phase(name=name, start_us=start_us, took_us=took_us))

    def start_up(self, first_line_us: int) -> None:
        """What was before the first step: the interpreter's start up to `first_line_us`, then the imports until now."""
        executed = executed_us()
        if 0 < executed < first_line_us:
            self.add("start interpreter", executed, first_line_us - executed)
        self.add("import agent", first_line_us, now_us() - first_line_us)

    def taken(self) -> tuple[Phase, ...]:
        """The phases so far; they are handed out once."""
        phases = tuple(self._phases)
        self._phases.clear()
        self.told += phases
        return phases


class Step:
    """One step while it lasts."""

    def __init__(self, name: str, phases: list[Phase]) -> None:
        self._name, self._phases = name, phases
        self._began = 0

    def __enter__(self) -> None:
        self._began = now_us()

    def __exit__(self, kind: "type[BaseException] | None", error: "BaseException | None",
                 place: "TracebackType | None") -> None:
        self._phases.append(Phase(name=self._name, start_us=self._began, took_us=now_us() - self._began))
        if error is not None and not isinstance(error, StepFailed):
            raise StepFailed(fault_of(self._name, error)) from error


def executed_us() -> int:
    """When the kernel executed the interpreter, to the length of a tick (4 ms): it leaves the time of access, by the
    clock of the day, on a root file system that keeps such times.  Ask before the clock is set."""
    accessed = os.stat(sys.executable).st_atime_ns
    return (accessed - time.time_ns() + time.monotonic_ns()) // 1000


def now_us() -> int:
    """Microseconds since the kernel started (CLOCK_MONOTONIC counts from there)."""
    return time.monotonic_ns() // 1000
