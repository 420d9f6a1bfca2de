"""A few tasks side by side, all given up as soon as one fails or the user interrupts."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

# How long to wait for tasks that were told to stop.  One may sit in a read that only the network ends; its thread is a
# daemon then, works on nothing that anybody sees, and goes with the process.
_GRACE_S = 1.0


class Stopped(Exception):
    """Raised inside a task that is to stop because another one failed."""


class Stop:
    """What tasks look at to learn that they are to give up."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask all tasks to give up."""
        self._event.set()

    def check(self) -> None:
        """Raise Stopped if asked to give up."""
        if self._event.is_set():
            raise Stopped


def run_all(tasks: Sequence[Callable[[], None]], workers: int, stop: Stop) -> None:
    """Run ``tasks`` in this order on ``workers`` threads.  Raises what the first failing one raised.

    On a failure, and on an interrupt of the calling thread, ``stop`` is set, waiting tasks are dropped, and running
    ones are waited for briefly.
    """
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    results: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)

    def work() -> None:
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                stop.check()
                task()
            except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
                results.put(error)
            else:
                results.put(None)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(tasks)))]
    try:
        for thread in threads:
            thread.start()
        for _ in tasks:
            if (error := results.get()) is not None:
                raise error
    except BaseException:
        stop.set()
        deadline = time.monotonic() + _GRACE_S
        for thread in threads:
            if thread.ident is not None:  # else the interrupt came before it was started
                thread.join(max(0.0, deadline - time.monotonic()))
        raise
