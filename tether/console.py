"""The console: one line when something goes wrong, nothing otherwise (unless the kernel was given tether.debug)."""

import os

CONSOLE = 2  # standard error of PID 1 is /dev/console, and stays it


def say(line: str) -> None:
    """Prints one line.  A console that takes nothing is no reason for PID 1 to stop: there is nobody left to tell."""
    try:
        os.write(CONSOLE, line.encode("utf-8", "backslashreplace") + b"\r\n")
    except OSError:
        return
