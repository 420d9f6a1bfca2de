"""A small event loop over epoll: file descriptors, timers, calls from other threads (epoll(7), eventfd(2)).

Why not `selectors` or `asyncio`: 42 and 80 million instructions to import, in PID 1 (see tether.link.record).  One
thread owns a reactor and calls everything but `post`, which any thread or signal handler may call.
"""

import os
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, epoll
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
else:
    from _collections import deque  # the same, without importing `collections`

READ, WRITE, HANGUP = EPOLLIN, EPOLLOUT, EPOLLHUP | EPOLLERR
_NEVER = float("inf")
_MOST_EVENTS = 64  # fetched at a time, so that timers are looked at in between


class Watch:
    """A watched file descriptor; comes from `Reactor.watch`.

    The callback gets the conditions that hold, of READ, WRITE and HANGUP; HANGUP comes unasked, and again and again
    until `close` (or as long as `edge` is not set).
    """

    __slots__ = ("_interest", "_reactor", "callback", "fd")

    def __init__(self, reactor: "Reactor", fd: int, callback: "Callable[[int], None]") -> None:
        self.fd, self.callback = fd, callback
        self._reactor = reactor
        self._interest = -1

    def update(self, readable: bool, writable: bool, edge: bool = False) -> None:
        """Changes what is waited for.  `edge`: only changes are reported."""
        interest = (EPOLLIN if readable else 0) | (EPOLLOUT if writable else 0) | (EPOLLET if edge else 0)
        if interest != self._interest:
            self._reactor._change(self, interest, self._interest == -1)
            self._interest = interest

    def close(self) -> None:
        """Ends the watch; the file descriptor stays open.  A second call does nothing."""
        if self._interest != -1:
            self._interest = -1
            self._reactor._remove(self)


class Timer:
    """A call at a later time; comes from `Reactor.call_later`."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: "Callable[[], None]") -> None:
        self.due = due  # on the monotonic clock
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """It will not be called.  Harmless after it was."""
        self.callback = None


class Reactor:
    """See the module."""

    def __init__(self) -> None:
        self._epoll = epoll()
        self._watches: dict[int, Watch] = {}
        self._always: dict[int, tuple[Watch, int]] = {}  # regular files: epoll refuses them, they are always ready
        self._timers: list[Timer] = []
        self._due = _NEVER  # when the timers are to be looked at: never after the first one is due
        self._soon: deque[Callable[[], None]] = deque()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wakeup, EPOLLIN)

    def close(self) -> None:
        """Gives back its own file descriptors; the watched ones stay open."""
        self._watches.clear()
        self._always.clear()
        self._epoll.close()
        os.close(self._wakeup)

    def watch(
        self, fd: int, callback: "Callable[[int], None]", *, readable: bool = True, writable: bool = False
    ) -> Watch:
        """Calls `callback` whenever `fd` is ready.  One watch for each file descriptor."""
        watch = Watch(self, fd, callback)
        watch.update(readable=readable, writable=writable)
        return watch

    def call_later(self, seconds: float, callback: "Callable[[], None]") -> Timer:
        """Calls `callback` once, in `seconds`."""
        timer = Timer(monotonic() + seconds, callback)
        self._timers.append(timer)
        self._due = min(self._due, timer.due)
        return timer

    def soon(self, callback: "Callable[[], None]") -> None:
        """Calls `callback` in this or the next round, before anything is waited for."""
        self._soon.append(callback)

    def post(self, callback: "Callable[[], None]") -> None:
        """As `soon`, from any thread or signal handler."""
        self._soon.append(callback)
        self.wake()

    def wake(self) -> None:
        """Ends a wait that another thread is in."""
        os.eventfd_write(self._wakeup, 1)

    def run_once(self, timeout: float | None = None) -> None:
        """One round: waits for the first thing to happen, at most `timeout` seconds, and calls what is due."""
        if self._soon:
            self._run_soon()
        patience = self._patience(timeout)
        happened = self._epoll.poll(patience, _MOST_EVENTS)
        for fd, ready in happened:
            watch = self._watches.get(fd)
            if watch is not None:  # else: closed by a callback of this round, or
                watch.callback(ready)
            elif fd == self._wakeup:
                os.eventfd_read(fd)
        if self._always:
            for watch, interest in list(self._always.values()):
                if interest and watch.fd in self._always:
                    watch.callback(interest)
        if not patience or not happened:  # a timer that came due while something else happened: the next round, at once
            self._run_timers()
        if self._soon:
            self._run_soon()

    def run_until(self, condition: "Callable[[], bool]", seconds: float) -> bool:
        """Runs rounds until `condition` holds (True) or `seconds` have passed (False)."""
        deadline = monotonic() + seconds
        while not condition():
            left = deadline - monotonic()
            if left <= 0:
                return False
            self.run_once(left)
        return True

    def _patience(self, timeout: float | None) -> float:
        """How long the round may wait: 0 if something is due."""
        if self._soon or (self._always and any(interest for _, interest in self._always.values())):
            return 0
        if self._due < _NEVER:
            left = max(0.0, self._due - monotonic())
            if timeout is None or left < timeout:
                return left
        return -1 if timeout is None else timeout

    def _run_soon(self) -> None:
        """What is posted meanwhile has to wait for the next time."""
        for _ in range(len(self._soon)):
            self._soon.popleft()()

    def _run_timers(self) -> None:
        if self._due == _NEVER:
            return
        now = monotonic()
        if now < self._due:
            return
        due = [timer for timer in self._timers if timer.due <= now or timer.callback is None]
        self._timers = [timer for timer in self._timers if timer.due > now and timer.callback is not None]
        self._due = min(map(_due, self._timers), default=_NEVER)
        for timer in sorted(due, key=_due):
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()

    def _change(self, watch: Watch, interest: int, new: bool) -> None:
        if watch.fd in self._always:
            self._always[watch.fd] = watch, interest & (READ | WRITE)
            return
        try:
            if new:
                self._epoll.register(watch.fd, interest)
            else:
                self._epoll.modify(watch.fd, interest)
        except PermissionError:
            self._always[watch.fd] = watch, interest & (READ | WRITE)
            return
        self._watches[watch.fd] = watch

    def _remove(self, watch: Watch) -> None:
        if self._always.pop(watch.fd, None) is None:
            self._watches.pop(watch.fd, None)
            self._epoll.unregister(watch.fd)


def _due(timer: Timer) -> float:
    return timer.due
