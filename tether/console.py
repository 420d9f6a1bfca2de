"""The console: one line when something goes wrong, nothing otherwise (unless the kernel was given tether.debug)."""

import os

_STDERR = 2


def say(line: str) -> None:
    """Prints one line.  A console that takes nothing is no reason for PID 1 to stop: there is nobody left to tell."""
    try:
        os.write(_STDERR, line.encode("utf-8", "backslashreplace") + b"\r\n")
    except OSError:
        return
