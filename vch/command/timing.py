"""Where the time went, in one line for people and as JSON for programs."""

from __future__ import annotations

import json
import resource
import time

from tether.link.messages import Phase


class Stopwatch:
    """Laps of the host's clock, and the guest's phases inside them."""

    def __init__(self) -> None:
        self.began = self._last = time.monotonic()
        self._laps: list[tuple[str, float, tuple[Phase, ...]]] = []
        self.agent_kib = 0  # resident memory of tether when the session had started

    def lap(self, name: str, phases: tuple[Phase, ...] = ()) -> None:
        """What has passed since the last lap was `name`; the guest spent `phases` of it."""
        now = time.monotonic()
        self._laps.append((name, now - self._last, phases))
        self._last = now

    def report(self) -> str:
        """"prepare 0.05 s, boot 1.30 s (load modules 120 ms, ...), ... total 2.10 s"."""
        parts = []
        for name, seconds, phases in self._laps:
            inside = ", ".join(f"{phase.name} {phase.took_us / 1000:.0f} ms" for phase in phases)
            parts.append(f"{name} {seconds:.2f} s" + (f" ({inside})" if inside else ""))
        return f"{', '.join(parts)}; total {self._last - self.began:.2f} s"

    def document(self) -> str:
        """The same as JSON, in seconds, with QEMU's memory (KiB, peak) and CPU once it has ended, and tether's."""
        laps = {name: round(seconds, 6) for name, seconds, _ in self._laps}
        guest = {phase.name: phase.took_us / 1e6 for _, _, phases in self._laps for phase in phases}
        used = resource.getrusage(resource.RUSAGE_CHILDREN)  # QEMU is the only large child
        peak, cpu = used.ru_maxrss, round(used.ru_utime + used.ru_stime, 6)
        facts = {"laps": laps, "guest": guest, "total": round(self._last - self.began, 6)}
        qemu = {"qemu_peak_kib": peak, "qemu_cpu": cpu}
        return json.dumps({**facts, **qemu, "agent_kib": self.agent_kib}, indent=2) + "\n"
