"""What a pull tells about itself while it runs."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple


class Phase(Enum):
    """Where a layer is on its way."""

    QUEUED = "not begun"
    PRESENT = "already here"
    WAITING = "another process is at it"
    RUNNING = "downloading and converting"
    DONE = "done"


class Progress(NamedTuple):
    """One layer's state: ``done`` of ``total`` bytes of its blob.  Those of all layers add up to the image's."""

    digest: str
    phase: Phase
    done: int
    total: int


Report = Callable[[Progress], None]  # called from several threads


def silent(_: Progress) -> None:
    """The report of someone who does not want to know."""
