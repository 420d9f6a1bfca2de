"""The chart of one start: what took how long from `vch run` to the container's first output, on one time line.

Two clocks meet: the host's, and the guest's CLOCK_MONOTONIC, which begins when its kernel starts to keep time.  Once it
is known when that was by the host's clock, every phase that the agent tells of has its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tether.link.messages import Phase

SPEC_ARRIVED = "take identity"  # the first step that needs it
LEAST_GAP_S = 0.001  # what is shorter between two phases is no wait


class Part(Enum):
    """What a span of time went to."""

    HOST = "host"
    FIRMWARE = "firmware"
    KERNEL = "kernel"
    RUNTIME = "runtime"
    IMPORTS = "imports"
    MOUNTS = "mounts"
    LINK = "link"
    DISKS = "disks"
    NETWORK = "network"
    EXEC = "exec"
    OUTPUT = "output"


PART_OF = {
    "start interpreter": Part.RUNTIME,
    "import agent": Part.IMPORTS,
    "mount pseudo filesystems": Part.MOUNTS,
    "load modules": Part.KERNEL,
    "open link": Part.LINK,
    "wake up": Part.LINK,
    "take identity": Part.LINK,
    "check spec": Part.LINK,
    "mount layers": Part.DISKS,
    "mount writable disk": Part.DISKS,
    "stack root": Part.MOUNTS,
    "furnish root": Part.MOUNTS,
    "write names": Part.MOUNTS,
    "mount volumes": Part.MOUNTS,
    "configure network": Part.NETWORK,
    "start session": Part.EXEC,
}


@dataclass(frozen=True)
class Moments:
    """Points of the host's monotonic clock, in seconds; None for what never came."""

    began: float  # vch run
    machine: float  # QEMU is started
    guest_zero: float  # the guest's clock began
    first_output: float | None


@dataclass(frozen=True)
class Span:
    """A stretch of the time line; seconds since `vch run` began."""

    name: str
    part: Part
    start: float
    took: float

    @property
    def end(self) -> float:
        """When it was over."""
        return self.start + self.took


def guest_zero(ready_at: float, phases: Sequence[Phase]) -> float:
    """When the guest's clock began, from when its Ready arrived: it left at the end of the last phase.

    Late by the time that the hellos of the link took; `Pong` gives a better answer (`zero_of_pong`).
    """
    return ready_at - max((phase.start_us + phase.took_us for phase in phases), default=0) / 1e6


def zero_of_pong(asked: float, answered: float, monotonic_ns: int) -> float:
    """The same from a question and its answer, taken to be in the middle."""
    return (asked + answered) / 2 - monotonic_ns / 1e9


def spans(moments: Moments, phases: Sequence[Phase]) -> list[Span]:
    """The time line, in order, without holes: what lies between two phases is shown as waiting for the link."""
    began, zero = moments.began, moments.guest_zero - moments.began
    machine = moments.machine - began
    ordered = sorted(phases, key=lambda one: one.start_us)
    line = [Span("prepare", Part.HOST, 0.0, machine)]
    if zero < machine and ordered:  # a clone: its clock began when its template did
        now, seen = zero + ordered[0].start_us / 1e6, True
        line.append(Span("QEMU and template", Part.FIRMWARE, machine, now - machine))
    else:
        now, seen = zero, False
        line.append(Span("QEMU and firmware", Part.FIRMWARE, machine, zero - machine))
    for phase in ordered:
        start = zero + phase.start_us / 1e6
        if start - now > LEAST_GAP_S:
            line.append(_waiting(phase, now, start) if seen else Span("kernel", Part.KERNEL, now, start - now))
        seen = True
        took = phase.took_us / 1e6
        line.append(Span(phase.name, PART_OF.get(phase.name, Part.HOST), start, took))
        now = start + took
    if moments.first_output is not None:
        line.append(Span("first output", Part.OUTPUT, now, max(0.0, moments.first_output - began - now)))
    return line


def _waiting(phase: Phase, since: float, start: float) -> Span:
    """The time before `phase` in which the agent had nothing to do."""
    return Span("hello, spec" if phase.name == SPEC_ARRIVED else "between", Part.LINK, since, start - since)


def totals(line: Sequence[Span]) -> dict[Part, float]:
    """Seconds of each part, in the order of `Part`."""
    return {part: sum(span.took for span in line if span.part is part) for part in Part
            if any(span.part is part for span in line)}


def table(line: Sequence[Span]) -> str:
    """The chart as text, times in milliseconds, and the sum of each part."""
    whole = line[-1].end
    width = max(len(span.name) for span in line)
    rows = [f"{'':{width}}  {'part':8}  {'start ms':>8}  {'took ms':>8}"]
    rows += [f"{span.name:{width}}  {span.part.value:8}  {span.start * 1000:8.0f}  {span.took * 1000:8.1f}"
             for span in line]
    sums = [f"{part.value} {seconds * 1000:.0f}" for part, seconds in totals(line).items()]
    return "\n".join((*rows, f"total {whole * 1000:.0f} ms: {', '.join(sums)}"))
