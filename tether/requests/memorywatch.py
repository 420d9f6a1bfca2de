"""Tells the appliance when the OOM killer has struck, and when memory is short.

The kernel's own log (/dev/kmsg) says what was killed; a program that writes there cannot pretend to be the kernel,
whose facility is 0.  That memory is short is said by its pressure stall information (accounting/psi.rst), or found by
a look every few seconds where the kernel has none.
"""

import errno
import os
import select

from tether.kernel import files
from tether.link.errors import CongestedError
from tether.link.late_messages import MemoryShort, OutOfMemory
from tether.link.record import Record
from tether.requests.log import WARNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.agent import Agent

KMSG, PRESSURE = "/dev/kmsg", "/proc/pressure/memory"
TRIGGER = b"some 150000 1000000\0"  # somebody waited for memory for 150 ms of a second
AT_ONCE = 64  # records of the kernel's log in one turn: whoever floods it keeps nobody waiting
LOOK_SECONDS = 2.0
SHORT, ENOUGH = 0.08, 0.15  # of all memory: below the one it is short, until it is above the other
_RECORD = 8192
_KILLED = "Killed process "
_FACILITY = 3  # bits of the level below it


class MemoryWatch:
    """One for each machine; lives as long as the agent."""

    def __init__(self, agent: "Agent") -> None:
        """Raises OSError if the kernel has no log."""
        self._agent = agent
        self._short = False
        self._kmsg = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._kmsg, 0, os.SEEK_END)
        agent.reactor.watch(self._kmsg, self._kernel_said)
        if os.path.exists(PRESSURE):
            self._watch_pressure()
        else:
            self._look_again()

    def _kernel_said(self, _ready: int) -> None:
        for _ in range(AT_ONCE):
            try:
                record = os.read(self._kmsg, _RECORD)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EPIPE:  # records were overwritten before we came: the next read goes on
                    raise
                continue
            event = parse_kill(record)
            if event is not None:
                self._tell(event)

    def _tell(self, event: Record) -> None:
        if self._agent.log is not None:
            self._agent.log.write(WARNING, repr(event))
        try:
            self._agent.endpoint.notify(event)
        except CongestedError:
            return  # the appliance has not read for long: it can ask what has happened

    def _watch_pressure(self) -> None:
        self._pressure = os.open(PRESSURE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(self._pressure, TRIGGER)
        self._stalls = select.epoll()  # the reactor waits for input only, and this is EPOLLPRI
        self._stalls.register(self._pressure, select.EPOLLPRI)

        def stalled(_ready: int) -> None:
            self._stalls.poll(0)
            self._look()

        self._agent.reactor.watch(self._stalls.fileno(), stalled)

    def _look_again(self) -> None:
        self._look()
        self._agent.reactor.call_later(LOOK_SECONDS, self._look_again)

    def _look(self) -> None:
        total, available = parse_available(files.read("/proc/meminfo"))
        if not self._short and available < SHORT * total:
            self._short = True
            self._tell(MemoryShort(available=available, limit=total))
        elif self._short and available > ENOUGH * total:
            self._short = False


def parse_kill(record: bytes) -> OutOfMemory | None:
    """What a record of /dev/kmsg (ABI/testing/dev-kmsg) says of a process that the OOM killer took, if it does."""
    head, _, text = record.decode("utf-8", "backslashreplace").partition(";")
    level = head.partition(",")[0]
    if not level.isdigit() or int(level) >> _FACILITY or "ut of memory" not in text or _KILLED not in text:
        return None
    pid, _, rest = text.partition(_KILLED)[2].partition(" ")
    name, kib = rest[1:].rpartition(") ")[0], text.partition("anon-rss:")[2].partition("kB")[0]
    return OutOfMemory(pid=int(pid), name=name, rss=int(kib) * 1024 if kib.isdigit() else 0)


def parse_available(meminfo: bytes) -> tuple[int, int]:
    """MemTotal and MemAvailable of /proc/meminfo, in bytes."""
    said = {name: rest.split()[0] for name, _, rest in (line.partition(b":") for line in meminfo.splitlines())}
    return int(said[b"MemTotal"]) * 1024, int(said[b"MemAvailable"]) * 1024
