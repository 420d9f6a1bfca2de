"""Moving bytes between the user's file descriptors and streams of the link, inside the I/O loop.

Back-pressure both ways: while a stream's ring is full its source is not read; while a sink takes nothing its stream is
not read, so its credit does not go back and the container waits in its write.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from tether.link.reactor import Reactor, Watch
from tether.link.stream import Stream
from vch.machine.sinks import Sink, SinkClosedError

CHUNK = 64 << 10  # bytes of one read: what a pipe holds
FRAME = 512 << 10  # what arrives at a time: taken as it is, it need not be copied
ROUNDS = 2  # chunks in a row before other streams get their turn


class InputPump:
    """From a descriptor of the user's to a stream, until its end or until the container wants no more.

    The descriptor stays blocking, because it is shared; a read after epoll has reported bytes does not block.
    """

    def __init__(self, reactor: Reactor, source: int, stream: Stream) -> None:
        self._reactor, self._source, self._stream = reactor, source, stream
        self._left = memoryview(b"")  # read, but not yet taken by the stream
        self._watch: Watch | None = None
        self.done = False
        self.resume()

    def resume(self) -> None:
        """The stream has room, or nobody reads it any more."""
        if self.done:
            return
        if self._stream.stopped or self._stream.broken:
            self.close()
        elif self._pass_on() and self._watch is None:
            try:
                self._watch = self._reactor.watch(self._source, self._ready)
            except OSError:  # not an open descriptor: there is no input
                self._finish()

    def close(self) -> None:
        """Reads no more; the user's descriptor stays open."""
        self._unwatch()
        self._left = memoryview(b"")
        self.done = True

    def _ready(self, _conditions: int) -> None:
        try:
            data = os.read(self._source, CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ECONNRESET, errno.EBADF, errno.EISDIR):  # hung up, or no input
                raise
            data = b""
        if not data:
            self._finish()
            return
        taken = self._stream.write(data)  # all of it as a rule, and bytes are kept as they are
        if taken < len(data):
            self._left = memoryview(data)[taken:]
            self._unwatch()  # a hung-up pipe reports itself without being asked: nothing less than this is silence

    def _pass_on(self) -> bool:
        """Gives the stream what is left; true if it took everything."""
        if self._left:
            self._left = self._left[self._stream.write(self._left) :]
        return not self._left

    def _finish(self) -> None:
        self.close()
        self._stream.finish()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None


class OutputPump:
    """From a stream to a sink.

    `done(None)` is called at the stream's end, when everything was written; `done(error)` when the sink is closed or
    broken: then the stream is told that nobody reads it.
    """

    def __init__(
        self, reactor: Reactor, stream: Stream, sink: Sink, done: Callable[[Exception | None], None]
    ) -> None:
        self._reactor, self._stream, self._sink, self._callback = reactor, stream, sink, done
        self._left = memoryview(b"")
        self._watch: Watch | None = None
        self._final = False  # nothing more will come, ended or not
        self.done = False

    def resume(self) -> None:
        """The stream has bytes, or has ended."""
        if self.done or self._watch is not None:
            return
        try:
            for _ in range(ROUNDS):
                if not self._left:
                    self._left = memoryview(self._stream.read(FRAME))
                if not self._left:
                    if self._stream.ended or self._final:
                        self._end(None)
                    return
                self._left = self._left[self._sink.write(self._left) :]
        except BlockingIOError:
            self._watch = self._reactor.watch(self._sink.fd, self._writable, readable=False, writable=True)
            return
        except (SinkClosedError, OSError) as error:
            self._stream.stop()
            self._end(error)
            return
        self._reactor.soon(self.resume)

    def finish(self) -> None:
        """The machine is gone: writes what has arrived, and that is all."""
        self._final = True
        self.resume()

    def abandon(self) -> None:
        """The user does not want to wait for a sink that takes nothing."""
        if not self.done:
            self._end(None)

    def _writable(self, _conditions: int) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self.resume()

    def _end(self, error: Exception | None) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self.done = True
        self._left = memoryview(b"")
        self._sink.close()
        self._callback(error)
