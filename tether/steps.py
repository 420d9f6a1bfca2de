"""The steps of the boot diagram: each has a name, is timed, and names itself when it fails."""

import time

from tether.faults import fault_of
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

    def __call__(self, name: str) -> "Step":
        return Step(name, self._phases)

    def taken(self) -> tuple[Phase, ...]:
        """The phases so far; they are handed out once."""
        phases = tuple(self._phases)
        self._phases.clear()
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


def now_us() -> int:
    """Microseconds since the kernel started (CLOCK_MONOTONIC counts from there)."""
    return time.monotonic_ns() // 1000
