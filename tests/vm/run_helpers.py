"""What the tests of `vch run` share: a terminal to run it in, and a look at what it left behind."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import vch
from tests.vm.conftest import RUN_SECONDS, VCH

STEP_SECONDS = 120.0  # for something to happen in a machine that runs, on a host that is busy


class Terminal:
    """`vch` under a pseudo terminal of its own, as a shell would start it."""

    def __init__(self, *words: str, rows: int = 24, columns: int = 80) -> None:
        ours, theirs = pty.openpty()
        self.resize(rows, columns, theirs)
        self.before = termios.tcgetattr(theirs)
        self._slave = theirs
        self._fd = ours
        self.seen = b""
        # setsid -c makes it the controlling terminal, so that Ctrl-C becomes a signal as in a user's own.
        command = ["setsid", "-c", str(VCH), *words]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)

    def resize(self, rows: int, columns: int, fd: int = -1) -> None:
        """As dragging the window's corner would: the kernel tells the foreground processes."""
        fcntl.ioctl(self._slave if fd < 0 else fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        """Presses keys."""
        os.write(self._fd, text)

    def expect(self, text: bytes, seconds: float = RUN_SECONDS) -> bytes:
        """Reads until `text` is seen; everything up to it."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._fd], [], [], left)[0]:
                raise AssertionError(f"waited {seconds} s for {text!r}; seen: {self.seen!r}")
            try:
                self.seen += os.read(self._fd, 65536)
            except OSError:  # EIO: everybody has closed the terminal
                raise AssertionError(f"the end came before {text!r}; seen: {self.seen!r}") from None
        found, _, self.seen = self.seen.partition(text)
        return found

    def wait(self, seconds: float = RUN_SECONDS) -> int:
        """The exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self._fd], [], [], 0.05)[0]:
                self.seen += os.read(self._fd, 65536)
        return self.process.wait(max(0.0, deadline - time.monotonic()))

    @property
    def restored(self) -> bool:
        """Whether the terminal is as it was."""
        return termios.tcgetattr(self._slave) == self.before

    def close(self) -> None:
        """Ends it whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(STEP_SECONDS)
        os.close(self._fd)
        os.close(self._slave)


@contextmanager
def tcp_port() -> Iterator[int]:
    """A TCP port of 127.0.0.1 that the kernel gives to nobody meanwhile, and that a server may still ask for by number
    (socket(7), SO_REUSEADDR)."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def machines_of(pid: int) -> list[int]:
    """The QEMU processes that the process `pid` has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                program = (entry / "comm").read_text()
            except OSError:
                continue
            if int(stat[1]) == pid and program.startswith("qemu") and stat[0] != "Z":
                found.append(int(entry.name))
    return found


def machine_of(process: subprocess.Popen[bytes]) -> int:
    """The QEMU of a `vch run`, as soon as there is one."""
    deadline = time.monotonic() + STEP_SECONDS
    while time.monotonic() < deadline:
        found = machines_of(process.pid)
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no QEMU was started")


def gone(pid: int, seconds: float = STEP_SECONDS) -> bool:
    """Whether a process has ended (or is a zombie of somebody else's) within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def tree(folder: Path) -> set[str]:
    """Every file below `folder`."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def until_line(process: subprocess.Popen[bytes], line: bytes, seconds: float = RUN_SECONDS) -> None:
    """Reads standard output until this line, and no further: what follows is for others."""
    assert process.stdout is not None
    deadline, read = time.monotonic() + seconds, b""
    while select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
        byte = os.read(process.stdout.fileno(), 1)
        read += byte
        if read == line:
            return
        if byte == b"\n":
            read = b""
        if not byte:
            stderr = process.stderr.read() if process.stderr else b""
            raise AssertionError(f"the end came before {line!r}: {stderr!r}")
    process.send_signal(signal.SIGKILL)
    raise AssertionError(f"waited {seconds} s for {line!r}")


def until_waiting(pool: vch.Pool, count: int = 1) -> set[int]:
    """Waits for the pool to be filled; the machines of this process then."""
    deadline = time.monotonic() + STEP_SECONDS
    while pool.waiting() < count:
        assert time.monotonic() < deadline, f"{pool.waiting()} of {count} machines wait"
        time.sleep(0.05)
    return set(machines_of(os.getpid()))
