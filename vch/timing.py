"""Where the time went, in one line."""

from __future__ import annotations

import time

from tether.link.messages import Phase


class Stopwatch:
    """Laps of the host's clock, and the guest's phases inside them."""

    def __init__(self) -> None:
        self.began = self._last = time.monotonic()
        self._laps: list[tuple[str, float, tuple[Phase, ...]]] = []

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
