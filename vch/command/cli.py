"""The command `vch`: options for all commands, then a command.  Each command is a module, loaded when it is called."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from vch.errors import OperationError, UsageError
from vch.options.pflag import Flag, HelpRequested, Kind, parse, truth

COMMANDS = {
    "run": "run a container VM in the foreground",
    "template": "list, make or remove what machines are cloned from",
    "doctor": "say what this host can do",
    "completion": "print the completion script for bash, zsh or fish",
    "version": "print the version",
}
_FLAGS = (Flag("debug", "D", Kind.SWITCH, "", "show what is done"), Flag("version", "", Kind.SWITCH, "", "print it"))
EXIT_USAGE = 125
GARBAGE_THRESHOLD = 50_000  # objects; a start makes 20,000


def main() -> int:
    """Entry point of the console script."""
    # A start makes thousands of objects and hardly any garbage.  Looking for it 40 times on the way, and through
    # everything once more at the end, would be a fifth of its CPU.
    gc.set_threshold(GARBAGE_THRESHOLD)
    _open_standard_streams()
    try:
        return command(sys.argv[1:])
    finally:
        gc.freeze()


def _open_standard_streams() -> None:
    """`vch run <&- >&-`: a lock or a disk that took the number of a closed stream would get the container's output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


def command(words: Sequence[str]) -> int:
    """Runs one command line; its exit code."""
    try:
        return _dispatch(words)
    except UsageError as error:
        print(f"vch: {error}\nSee '{error.command} --help'.", file=sys.stderr)
        return EXIT_USAGE
    except OperationError as error:
        print(f"vch: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains once more when it flushes
        return 141


def _dispatch(words: Sequence[str]) -> int:
    try:
        given, rest = parse(_FLAGS, words)
    except HelpRequested:
        given, rest = [], []
    except UsageError as error:
        raise UsageError(error.cause, "vch") from error
    on = {one.flag.name for one in given if truth(one)}
    if "version" in on:
        rest = ["version"]
    if not rest:
        from vch.command.usage import overview

        print(overview(COMMANDS))
        return 0
    name, *arguments = rest
    match name:
        case "run":
            return _run(arguments, "debug" in on)
        case "template":
            from vch.command.template import main as template

            return template(arguments)
        case "doctor":
            from vch.command.doctor import main as doctor

            return doctor(arguments)
        case "completion":
            from vch.command.completion import main as completion

            return completion(arguments)
        case "version":
            from importlib.metadata import version

            print(f"vch {version('vch')}")
            return 0
    raise UsageError(f"'{name}' is not a vch command.", "vch")


def _run(arguments: Sequence[str], debug: bool) -> int:
    from vch.options.run_options import parse_run

    try:
        options = parse_run(arguments, os.environ, debug)
    except HelpRequested:
        from vch.command.usage import run_help

        print(run_help())
        return 0
    from vch.command.run import run

    return run(options, os.environ)


if __name__ == "__main__":
    sys.exit(main())
