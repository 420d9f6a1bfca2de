"""Moving bytes between a process's pipes (or terminal) and streams of the link, without ever blocking.

Back-pressure both ways: while the stream's ring is full its pipe is not read, so the process waits in its write; while
the pipe is full the stream is not read, so its credit does not come back and the host waits.
"""

import errno
import fcntl
import os

from tether.kernel.memory import keep_buffers
from tether.link.stream import Stream
from tether.process.terminal import END_OF_FILE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.link.reactor import Reactor, Watch

CHUNK = 512 << 10  # what one frame carries
SHORT = 16 << 10  # what is read of a process that writes little: to make room for a whole chunk costs page faults
# Each turn of the loop costs PID 1 far more than the bytes that it moves, and the pipe decides how many that are: a
# quarter of the CPU time of the kernel's own 64 KiB.  Memory is taken only for what waits in it.
PIPE_SIZE = 1 << 20
_F_SETPIPE_SZ = 1031  # fcntl(2)
_FIONREAD = 0x541B  # asm-generic/ioctls.h
_INT_SIZE = 4
_NOTHING = memoryview(b"")  # an empty part of a chunk would keep all of it in memory
AT_ONCE = 2  # chunks in one turn of the loop, so that no stream keeps the others waiting


class OutputPump:
    """From a pipe or terminal to a stream, until its end; then `ended` is called.  With `kept` the stream goes on."""

    def __init__(self, reactor: "Reactor", source: int, stream: Stream, ended: "Callable[[], None]",
                 kept: bool = False) -> None:
        self._reactor, self._source, self._stream, self._ended = reactor, source, stream, ended
        self._kept = kept
        self._ration: int | None = None  # how many bytes are still read; None: to the end
        self._size = SHORT  # of the next read
        self.done = False
        self._watch: Watch | None = reactor.watch(source, self._readable)

    def resume(self) -> None:
        """The stream has room again."""
        if self._watch is None and not self.done and self._stream.room:
            self._watch = self._reactor.watch(self._source, self._readable)
            if self._ration is not None:  # the pipe may have nothing to announce any more
                self._readable(0)

    def cut(self) -> None:
        """Does not wait for the end: what has been written by now is the last that is read."""
        if self.done:
            return
        self._ration = waiting_in(self._source)
        if self._watch is not None:
            self._readable(0)

    def end_stream(self) -> None:
        """Ends a stream that was kept."""
        self._stream.finish()

    def _readable(self, _ready: int) -> None:
        """Reads what the stream has room for, so that what was read is passed on as it is."""
        for _ in range(AT_ONCE):
            room = self._stream.room
            if not room:
                self._pause()
                return
            size = min(self._size, room)
            try:
                data = os.read(self._source, size) if self._ration is None else self._read_ration(size)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EIO:  # EIO: the last process has closed its end of the terminal
                    raise
                data = b""
            if not data:
                self._finish()
                return
            self._stream.write(data)
            if self._ration == 0:
                self._finish()
                return
            self._expect(len(data))
            if len(data) < size and self._ration is None:
                return

    def _expect(self, count: int) -> None:
        """Who has written so much at a time will do so again."""
        if count < SHORT:
            self._size = SHORT
        elif self._size == SHORT:
            self._size = CHUNK
            keep_buffers()
            _widen(self._source)

    def _read_ration(self, size: int) -> bytes:
        """Some of what is still to be read; nothing when that is all."""
        assert self._ration is not None
        data = os.read(self._source, min(size, self._ration)) if self._ration else b""
        self._ration -= len(data)
        return data

    def _pause(self) -> None:
        """Ends the watch altogether: a hang-up would be reported again and again to one that is only muted."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _finish(self) -> None:
        self._pause()
        os.close(self._source)
        self.done = True
        if not self._kept:
            self._stream.finish()
        self._ended()


class InputPump:
    """From a stream to a pipe or terminal, until the stream ends or nobody reads any more.

    With `kept` the stream is there for whoever takes over.
    """

    def __init__(self, reactor: "Reactor", sink: int, stream: Stream, terminal: bool, kept: bool = False) -> None:
        self._reactor, self._sink, self._stream, self._terminal = reactor, sink, stream, terminal
        self._kept = kept
        self._wide = False
        self._left = _NOTHING
        self._watch: Watch | None = None  # while waiting for the pipe to take more
        self.done = False
        self.resume()

    def resume(self) -> None:
        """The stream has bytes, or has ended."""
        if self._watch is not None or self.done:
            return
        for _ in range(AT_ONCE):
            if not self._left:
                self._left = memoryview(self._stream.read(CHUNK))
            if not self._left:
                if self._stream.ended:
                    self._end_of_input()
                return
            if not self._pass_on():
                return
        self._wait()  # more than enough for one turn: go on as soon as the pipe says so

    def close(self) -> None:
        """The process is gone: nobody will read what still comes."""
        if self.done:
            return
        self._stop_waiting()
        os.close(self._sink)
        self.done = True
        self._left = _NOTHING
        if not self._kept:
            self._stream.stop()

    def end_stream(self) -> None:
        """Wants no more of a stream that was kept."""
        self._stream.stop()

    def _pass_on(self) -> bool:
        """Writes what is left; true if the pipe took all of it."""
        try:
            self._left = self._left[os.write(self._sink, self._left):] or _NOTHING
        except BlockingIOError:
            pass  # nothing was taken: wait below
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # nobody has the other end open
                raise
            self.close()
            return False
        if self._left:
            if not self._wide:  # whose input does not fit will get more of it
                self._wide = True
                _widen(self._sink)
            self._wait()
            return False
        return True

    def _wait(self) -> None:
        if self._watch is None:
            self._watch = self._reactor.watch(self._sink, self._writable, readable=False, writable=True)

    def _stop_waiting(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _writable(self, _ready: int) -> None:
        self._stop_waiting()
        if not self._left or self._pass_on():
            self.resume()

    def _end_of_input(self) -> None:
        """A pipe is closed; on a terminal the end is a character (our end of it must stay open for its output)."""
        if self._terminal and not self._left:
            self._terminal = False
            self._left = memoryview(END_OF_FILE)
            if not self._pass_on():
                return
        self.close()


def waiting_in(source: int) -> int:
    """How many bytes can be read from a pipe or terminal now (ioctl_tty(2), pipe(7))."""
    count = fcntl.ioctl(source, _FIONREAD, bytes(_INT_SIZE))
    return int.from_bytes(count, "little")


def _widen(pipe: int) -> None:
    """Lets the pipe hold more.  One that cannot (a terminal, or memory is short) works as it is."""
    try:
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, PIPE_SIZE)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL, errno.EPERM, errno.ENOMEM, errno.EBUSY):
            raise
