"""Files on their way into a machine or out of it, as the host sees it: one request, one stream.

It takes the place of a session: its number, its streams.  The request is answered when the guest has done its part.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tether.link.messages import stdin_of, stdout_of
from vch.machine.pumps import InputPump, OutputPump
from vch.machine.sinks import Sink
from vch.promise import Promise

if TYPE_CHECKING:
    from tether.link.record import Record
    from vch.machine.driver import Driver


class Transfer:
    """One request.  Its methods may be called from any thread; those named `loop_*` only in the I/O thread."""

    def __init__(self, driver: Driver, number: int, message: Record, source: int | None, sink: Sink | None) -> None:
        """Asks.  Owns `source`, the read end of a pipe, and `sink`."""
        self.number = number
        self.flushed: Promise[None] = Promise("the rest of the files")
        """Kept when all that came has been written to `sink`."""
        self._driver = driver
        self._source, self._sink = source, sink
        self._input: InputPump | None = None
        self._output: OutputPump | None = None
        self._answered = False
        self.answer: Promise[Record] = driver.open(self, message, self._connect)
        if self.answer.done and self._input is None and self._output is None:
            self._release()  # the machine is gone: nobody else will

    def abort(self) -> None:
        """The source has failed: what was sent of it shall not count."""

        def abort() -> None:
            if self._input is not None and not self._input.done:
                self._input.close()
                stream = self._driver.stream(stdin_of(self.number))
                stream.write(b"")  # begins the stream: the end of one that has not begun would not be told
                stream.abort()
            self._release()

        self._driver.post(abort)

    # in the I/O thread

    def _connect(self) -> None:
        if self._sink is not None:
            stream = self._driver.stream(stdout_of(self.number))
            self._output = OutputPump(self._driver.reactor, stream, self._sink, self._written)
            self._sink = None
        if self._source is not None:
            self._input = InputPump(self._driver.reactor, self._source, self._driver.stream(stdin_of(self.number)))

    def loop_started(self) -> None:
        """The guest has answered."""
        self._over()

    def loop_stream(self, number: int) -> None:
        """A stream has news."""
        if self._output is not None and number == stdout_of(self.number):
            self._output.resume()
        elif self._input is not None and number == stdin_of(self.number):
            self._input.resume()
            if self._input.done:
                self._release()  # nobody reads it any more: whoever writes to the pipe is to know

    def loop_lost(self, _error: BaseException) -> None:
        """The guest could not do it, or is gone; writes out what has arrived."""
        if self._output is not None:
            self._output.finish()
        self._over()

    def loop_abandon_output(self) -> None:
        """Does not wait for a sink that takes nothing."""
        if self._output is not None:
            self._output.abandon()

    def _written(self, _error: Exception | None) -> None:
        self._settle()

    def _over(self) -> None:
        self._answered = True
        if self._input is not None:
            self._input.close()
        self._release()
        self._settle()

    def _settle(self) -> None:
        if self._answered and (self._output is None or self._output.done):
            self.flushed.keep(None)
            self._driver.loop_forget(self.number)

    def _release(self) -> None:
        """Gives back what belongs to it and to no pump."""
        if self._source is not None and (self._input is None or self._input.done):
            os.close(self._source)
            self._source = None
        if self._sink is not None:
            self._sink.close()
            self._sink = None
