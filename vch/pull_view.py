"""What the user sees while an image is fetched: one line that changes on a terminal, nothing in a pipe."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagebuild.transfer.progress import Progress

REDRAW_SECONDS = 0.1


class PullView:
    """A `progress` for imagebuild.pull; silent until the first layer really has to come."""

    def __init__(self, name: str, quiet: bool) -> None:
        self._name, self._quiet = name, quiet or not os.isatty(2)
        self._lock = threading.Lock()
        self._layers: dict[str, tuple[int, int]] = {}
        self._drawn = 0.0
        self._began = False

    def __call__(self, progress: Progress) -> None:
        """One layer has news.  From several threads."""
        with self._lock:
            self._layers[progress.digest] = (progress.done, progress.total)
            if self._quiet or not (self._began or progress.phase.name in ("RUNNING", "WAITING")):
                return
            self._began = True
            if time.monotonic() - self._drawn > REDRAW_SECONDS:
                self._drawn = time.monotonic()
                self._say(f"\r{self._name}: {self._amount()}\x1b[K")

    def finish(self) -> None:
        """The image is here, or will not come."""
        if self._began:
            self._say(f"\r{self._name}: {self._amount()}\x1b[K\n")

    def _amount(self) -> str:
        done = sum(layer[0] for layer in self._layers.values())
        total = sum(layer[1] for layer in self._layers.values())
        return f"{done / 1e6:.1f} of {total / 1e6:.1f} MB, {len(self._layers)} layers"

    @staticmethod
    def _say(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
