"""A value that the I/O thread will have later, and other threads wait for; what they wait for always has a name.

Why not concurrent.futures: it imports logging and queue (15 ms) for executors that nobody needs here.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from vch.errors import DeadlineError

T = TypeVar("T")


class Promise(Generic[T]):
    """Kept or broken once, by one thread; awaited by any."""

    __slots__ = ("_callbacks", "_error", "_gate", "_guard", "_value", "done", "what")

    def __init__(self, what: str) -> None:
        """`what` is being waited for, as messages will say: "the machine to boot"."""
        self.what = what
        self.done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Promise[T]], None]] = []
        self._guard = allocate_lock()
        self._gate = allocate_lock()
        self._gate.acquire()

    def keep(self, value: T) -> None:
        """It has come.  Later calls change nothing."""
        self._settle(value, None)

    def fail(self, error: BaseException) -> None:
        """It will not come.  Later calls change nothing."""
        self._settle(None, error)

    def result(self, seconds: float | None) -> T:
        """Waits for it; None: as long as it takes (the promise breaks when the machine does).

        Raises what it failed with, or DeadlineError.
        """
        if not self._gate.acquire(timeout=-1 if seconds is None else max(0.0, seconds)):
            raise DeadlineError("wait", self.what, f"not within {seconds:.0f} s" if seconds else "not yet")
        self._gate.release()
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    @property
    def error(self) -> BaseException | None:
        """What it failed with, if it did."""
        return self._error

    def then(self, callback: Callable[[Promise[T]], None]) -> None:
        """Calls back once it is settled, in the thread that settles it, or now."""
        with self._guard:
            if not self.done:
                self._callbacks.append(callback)
                return
        callback(self)

    def _settle(self, value: T | None, error: BaseException | None) -> None:
        with self._guard:
            if self.done:
                return
            self._value, self._error, self.done = value, error, True
        self._gate.release()
        for callback in self._callbacks:
            callback(self)
        self._callbacks.clear()
