"""What the command line shows: tables, sizes, ages, JSON, and progress bars where a person looks on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from imagebuild.transfer.progress import Phase, Progress, Report, silent

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_UNITS = ("B", "kB", "MB", "GB", "TB")
_SHORT = 12  # digits of an ID that tell images apart, as Docker shows them


def size_text(count: int) -> str:
    """Bytes for a person, in powers of ten as disks are sold: ``135 MB``."""
    amount = float(count)
    for unit in _UNITS:
        if amount < 999.5 or unit == _UNITS[-1]:
            return f"{amount:.0f} {unit}" if amount >= 99.5 or unit == "B" else f"{amount:.3g} {unit}"
        amount /= 1000
    raise AssertionError


def age_text(created: str) -> str:
    """How long ago an RFC 3339 time was: ``3 days``; empty if it is none."""
    try:
        seconds = time.time() - datetime.fromisoformat(_with_microseconds(created)).timestamp()
    except ValueError:
        return ""
    for unit, length in (("year", 31536000), ("month", 2592000), ("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "now"


def _with_microseconds(created: str) -> str:
    """Docker writes nanoseconds, which Python does not read."""
    head, dot, tail = created.partition(".")
    digits = len(tail) - len(tail.lstrip("0123456789"))
    return head + dot + tail[: min(digits, 6)].ljust(6, "0") + tail[digits:] if dot else created


def short(digest: str) -> str:
    """The first digits of a digest."""
    return digest.partition(":")[2][:_SHORT]


def plain(text: str) -> str:
    """Text from an image, which may hold anything, without what would drive the reader's terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they must be, two spaces apart."""
    lines = [list(head), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_json(value: Any) -> None:
    """One JSON document."""
    print(json.dumps(value, indent=2))


@contextmanager
def shown_progress(*, quiet: bool) -> Iterator[Report]:
    """A report that draws one bar per layer and one for all, or nothing when nobody looks on."""
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Shown(bars)


class _Shown:
    """Keeps the bars up to date; called from several threads, which rich allows."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._total = bars.add_task("total".ljust(_SHORT), total=0)
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self._size = 0

    def __call__(self, progress: Progress) -> None:
        task = self._tasks.get(progress.digest)
        if task is None:
            task = self._tasks[progress.digest] = self._bars.add_task("", total=progress.total)
            self._size += progress.total
        self._done[progress.digest] = progress.done
        note = "" if progress.phase in (Phase.RUNNING, Phase.DONE) else f" ({progress.phase.value})"
        self._bars.update(task, completed=progress.done, description=short(progress.digest) + note)
        self._bars.update(self._total, completed=sum(self._done.copy().values()), total=self._size)
