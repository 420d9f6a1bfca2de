"""The QEMU process: started so that it cannot outlive us, watched by pidfd, its complaints kept.

Lifetimes.  QEMU asks the kernel for SIGKILL when the *thread* that started it ends (PR_SET_PDEATHSIG, prctl(2)).  A
Machine starts QEMU from its own I/O thread, so neither the end of `vch run`, by SIGKILL too, nor the end of that
thread leaves a QEMU behind; and everything QEMU uses is an inherited descriptor without a name, so nothing else
stays either.

QEMU gets a session of its own: Ctrl-C at the terminal is for the container, never for the hypervisor.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vch.errors import HostError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STDERR_LIMIT = 64 << 10  # bytes of QEMU's complaints that are kept; a sane QEMU says a line or two
KILL_SECONDS = 10.0  # how long the kernel may take to end a process after SIGKILL; longer is a kernel in trouble
EXIT_CANNOT_BIND = 70  # of the child when the parent died before it could ask for the death signal; nobody sees it
REMEDY_INSTALL = "apt-get install qemu-system-x86"


class Ended(NamedTuple):
    """How QEMU ended: its exit code, or minus the signal that killed it, and what it said on stderr."""

    status: int
    complaint: str

    @property
    def killed_by(self) -> int:
        """The signal that killed it, or 0."""
        return max(0, -self.status)


class QemuProcess:
    """A running QEMU.  `pidfd` becomes readable when it ends, `stderr` when it complains."""

    def __init__(self, command: Sequence[str], inherited: Sequence[int]) -> None:
        """Starts it.  Raises HostError if it cannot be executed; whether it is content shows later.

        Call from the thread whose life the machine's is tied to.
        """
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=tuple(inherited),
                start_new_session=True,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - it does nothing that a thread could disturb
            )
        except FileNotFoundError as error:
            raise HostError("start QEMU", command[0], "not installed", REMEDY_INSTALL) from error
        except (OSError, subprocess.SubprocessError) as error:
            raise HostError("start QEMU", command[0], str(error)) from error
        assert self._process.stderr is not None
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self._stderr = self._process.stderr
        os.set_blocking(self._stderr.fileno(), False)
        self._complaint = bytearray()

    @property
    def stderr(self) -> int:
        """To be watched, and `read_stderr` called when readable."""
        return self._stderr.fileno()

    def read_stderr(self) -> bool:
        """Takes in what QEMU complained about; False at the end of it."""
        while True:
            try:
                data = os.read(self.stderr, 4096)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._complaint += data[: STDERR_LIMIT - len(self._complaint)]

    @property
    def complaint(self) -> str:
        """What it said, without its own name in front of each line."""
        lines = self._complaint.decode("utf-8", "replace").splitlines()
        return "\n".join(line.partition(": ")[2] if line.startswith("qemu") else line for line in lines).strip()

    def poll(self) -> Ended | None:
        """How it ended, or None while it runs."""
        status = self._process.poll()
        if status is None:
            return None
        self.read_stderr()
        return Ended(status, self.complaint)

    def kill(self) -> None:
        """SIGKILL; harmless when it is gone already."""
        if self._process.poll() is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> Ended:
        """Ends it if it still runs, waits for it, gives back its descriptors."""
        self.kill()
        try:
            status = self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise HostError("end QEMU", str(self.pid), "it ignores SIGKILL", "look at the kernel log") from error
        self.read_stderr()
        self._stderr.close()
        os.close(self.pidfd)
        return Ended(status, self.complaint)


def _die_with_parent() -> Callable[[], None]:
    """What the child runs between fork and exec: everything is looked up before, because nothing may be imported or
    locked there (other threads of ours may hold the locks)."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def ask() -> None:
        failed = prctl(PR_SET_PDEATHSIG, signal.SIGKILL.value, 0, 0, 0)
        if failed or os.getppid() != parent:  # died in between: the signal has been missed
            os._exit(EXIT_CANNOT_BIND)

    return ask
