"""How PID 1 of a guest died, from what the console said: the kernel's panic, and what came before it.  Pure.

The kernel panics when PID 1 ends, with its wait status (kernel/exit.c, "Attempted to kill init!").  Why it ended was
said before that, by whoever noticed: the processor (a line of arch/x86 for a fault nobody handles), Python's
faulthandler ("Fatal Python error"), or Python's traceback of an exception that nobody caught.
"""

from __future__ import annotations

import os
import re
import signal

_PANIC = re.compile(r"Attempted to kill init! exitcode=0x([0-9a-f]{8})")
_FAULT = re.compile(r"\[1\]:? (segfault at .*|general protection fault.*|trap .*)$", re.MULTILINE)
_FATAL = re.compile(r"^Fatal Python error: (.*)$", re.MULTILINE)
_PLACE = re.compile(r'^  File "(.*)", line ([0-9]+)(?: in (.*))?', re.MULTILINE)
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:: .*)?$", re.MULTILINE)
_TRACEBACK = "Traceback (most recent call last):"
_CALL_STACK = "(most recent call first):"  # faulthandler's order, the other way round


def init_death(console: str) -> str:
    """The sentence about it, or nothing if PID 1 has not died."""
    found = _PANIC.search(console)
    if found is None:
        return ""
    before = console[: found.start()]
    details = [detail for detail in (_fault(before), _python(before)) if detail]
    return ": ".join(["PID 1 " + _how(int(found[1], 16)), *details])


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"was ended by {_signal_name(os.WTERMSIG(status))}"
    return f"ended with exit code {os.WEXITSTATUS(status)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _fault(text: str) -> str:
    found = _FAULT.findall(text)
    return str(found[-1]).strip() if found else ""


def _python(text: str) -> str:
    """What Python said, and the line of the program that it was at."""
    fatal = list(_FATAL.finditer(text))
    start = text.rfind(_TRACEBACK)
    if fatal and fatal[-1].start() > start:
        stack = text[fatal[-1].end() :]
        place = _PLACE.search(stack[stack.find(_CALL_STACK) :]) if _CALL_STACK in stack else None
        return f"{fatal[-1][1]}{_at(place)}"
    if start < 0:
        return ""
    said = _EXCEPTION.search(text, start + len(_TRACEBACK))
    places = list(_PLACE.finditer(text, start))
    return f"{said[0]}{_at(places[-1] if places else None)}" if said else ""


def _at(place: re.Match[str] | None) -> str:
    return f" at {place[1]}:{place[2]}" if place is not None else ""
