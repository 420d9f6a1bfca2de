"""Why a machine ended: from all that was seen of it to one sentence with step, cause and remedy.  Pure.

Evidence, best first: what tether said over the link (Goodbye), what tether or the kernel said last on the console, why
we ended QEMU ourselves, what QEMU said, how QEMU ended.
"""

from __future__ import annotations

import re
import signal
from enum import Enum
from typing import NamedTuple

from tether.link.lastwords import read_last_words
from tether.link.messages import Fault, Goodbye
from vch.errors import BootError, GuestError, MachineError, MachineLostError
from vch.qemu.console import Console
from vch.qemu.process import Ended

# Compiled where they are used: few machines say anything before they end.
_TETHER_LINE = r"(?m)^(?:\[ *\d+\.\d+\] )?tether: (.*)$"
_NO_MEMORY = r"[Oo]ut of memory|deadlocked on memory|out-of-memory|oom-kill|Cannot allocate|write error$"
_DEBUG = "run it with -D to see the console"
_MORE_MEMORY = "give it more memory: -m"
# QEMU's ShutdownCause (qapi/run-state.json) where the guest's own software was at work and said nothing.
_WITHOUT_A_WORD = {
    "guest-shutdown": "a process in it switched the machine off",
    "guest-reset": "a process in it reset the machine, or its kernel panicked and could not say so",
}
_TERMINATED = "terminating on signal"  # QEMU's own words; its exit code is 0 all the same
_INIT_DIED = f"a bug of tether, or something in the container wrote to PID 1; {_DEBUG}"
_BY_ITSELF = "reboot(2), as in `poweroff -f` or `reboot -f`, ends a container without cleaning up"


class Stage(Enum):
    """How far a machine had come.  From RUNNING on, the container's process may have done something."""

    BOOTING = "boot"  # the kernel or tether was starting
    READY = "start container"  # tether waited for, or worked on, its spec
    RUNNING = "run container"  # the process ran


class Evidence(NamedTuple):
    """What was seen of a machine that is gone.  `ended` is None if QEMU never ran.

    `shutdown` is what QEMU said about it (the reason of the monitor's event SHUTDOWN: "guest-reset", ...), `killed` why
    we killed it, if we did.
    """

    stage: Stage
    console: Console
    ended: Ended | None = None
    goodbye: Goodbye | None = None
    link_failure: str = ""
    shutdown: str = ""
    killed: str = ""


def explain(evidence: Evidence) -> MachineError:
    """The error to raise."""
    console = evidence.console.tail()
    goodbye = evidence.goodbye or read_last_words(evidence.console.text)
    if goodbye is not None and goodbye.fault is not None:
        return GuestError(goodbye.fault, console)
    subject, cause, remedy = _cause(evidence, goodbye)
    kind = MachineLostError if evidence.stage is Stage.RUNNING else BootError
    return kind(evidence.stage.value, subject, cause, remedy, console)


def _cause(evidence: Evidence, goodbye: Goodbye | None) -> tuple[str, str, str]:
    """Subject, cause, remedy."""
    told = _told_by_console(evidence.console)
    if told is not None:
        return told
    if evidence.killed:
        return "guest", evidence.killed, _DEBUG
    if evidence.ended is not None and evidence.ended.status:
        return _cause_in_qemu(evidence.ended)
    if evidence.link_failure:
        return "link", evidence.link_failure, "report it: host and guest do not understand each other"
    return _powered_off(evidence, goodbye)


def _told_by_console(console: Console) -> tuple[str, str, str] | None:
    """What kernel and tether said of the end, if they said anything."""
    text = console.text
    if not text:
        return None
    from vch.machine.init_death import init_death

    death = init_death(text)
    if death:
        return "tether", death, _INIT_DIED
    if console.panic:
        memory = re.search(_NO_MEMORY, text) is not None
        return "guest kernel", f"panic: {console.panic}", _MORE_MEMORY if memory else _DEBUG
    said = re.findall(_TETHER_LINE, text)
    if said:
        return "tether", said[-1].strip(), "" if said[-1].endswith(")") else _DEBUG
    return None


def _powered_off(evidence: Evidence, goodbye: Goodbye | None) -> tuple[str, str, str]:
    """The guest switched itself off, or was reset, and nothing says that it failed."""
    if goodbye is not None:
        return "guest", f"powered off: {goodbye.reason}", _DEBUG
    if evidence.ended is not None and _TERMINATED in evidence.ended.complaint:
        return "QEMU", evidence.ended.complaint, ""
    if evidence.shutdown in _WITHOUT_A_WORD:
        return "guest", _WITHOUT_A_WORD[evidence.shutdown], _BY_ITSELF
    last = evidence.console.last_words
    heard = f"; last heard: {last}" if last else ", and nothing was heard from it"
    return "guest", f"powered off without a word{heard}", _DEBUG


def _cause_in_qemu(ended: Ended) -> tuple[str, str, str]:
    if not ended.killed_by:
        return "QEMU", ended.complaint or f"ended with {ended.status}", _remedy_for(ended.complaint)
    name = signal.Signals(ended.killed_by).name
    return "QEMU", f"killed by {name}", _REMEDIES.get(name, "")


_REMEDIES = {
    "SIGKILL": "see whether the host ran out of memory (dmesg)",
    "SIGBUS": "its memory is a file for which there was no room, or that was truncated: see VCH_TEMPLATES",
}


def _remedy_for(complaint: str) -> str:
    """What helps against QEMU's commonest complaints."""
    if "host forwarding rule" in complaint:
        return "the port is taken: choose another one with -p"
    if "Cannot allocate memory" in complaint or "cannot set up guest memory" in complaint:
        return "use less memory: -m"
    if "Failed to get" in complaint and "lock" in complaint:
        return "another machine uses this disk"
    return ""


def is_missing_command(fault: Fault) -> int | None:
    """The exit code that Docker has for a command that could not be executed: 127, 126, or None for other faults."""
    if fault.step == "exec":
        return 127 if fault.errno == "ENOENT" else 126
    if fault.step == "working directory" and fault.errno in ("ENOTDIR", "EACCES"):
        return 126
    return None
