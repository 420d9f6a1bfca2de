"""What signals to `vch run` mean.  As with `docker run`, whatever can be sent on is sent on:

    TERM, HUP           stop: the container's stop signal, after --stop-timeout KILL; a second one kills at once
    INT                 sent on (with a terminal Ctrl-C is a key and no signal); the third one kills at once
    QUIT, USR1, ...     sent on
    WINCH               the terminal has another size
    PIPE, CHLD, TSTP... left as they are

Before the container runs, INT, TERM and HUP end the preparations (Interrupted).
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NamedTuple

STOPPING = (signal.SIGTERM, signal.SIGHUP)
FORWARDED = (signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCONT)
PATIENCE = 3  # so many INTs mean that the user has lost it


class Interrupted(BaseException):
    """A signal came before the container ran."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Actions(NamedTuple):
    """What to do, in the container; each returns at once."""

    stop: Callable[[], None]
    kill: Callable[[], None]
    forward: Callable[[int], None]
    resize: Callable[[], None]


class SignalRouter:
    """A context manager: inside, signals mean what the module says.  In the main thread only."""

    def __init__(self) -> None:
        self._actions: Actions | None = None
        self._saved: dict[int, object] = {}
        self._stops = self._interrupts = 0

    def __enter__(self) -> SignalRouter:
        for number in (*STOPPING, *FORWARDED, signal.SIGWINCH):
            if number == signal.SIGCONT or signal.getsignal(number) is not signal.SIG_IGN:  # nohup, and `vch run &`
                self._saved[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def running(self, actions: Actions | None) -> None:
        """From now on signals are for the container; None: there is no container any more."""
        self._actions = actions

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        actions = self._actions
        if actions is None:
            if number in STOPPING or number in (signal.SIGINT, signal.SIGQUIT):
                raise Interrupted(number)
        elif number in STOPPING:
            self._stops += 1
            (actions.stop if self._stops == 1 else actions.kill)()
        elif number == signal.SIGWINCH:
            actions.resize()
        elif number == signal.SIGINT:
            self._interrupts += 1
            actions.forward(number)
            if self._interrupts >= PATIENCE:
                actions.kill()
        else:
            actions.forward(number)
