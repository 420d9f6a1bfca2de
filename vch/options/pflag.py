"""A command line as Docker reads it: the grammar of github.com/spf13/pflag, with its messages.

    --name=value  --name value  -n value  -nvalue  -n=value  -it (two switches)  --switch  --switch=false

Options end at the first word that is none, or at "--": what follows belongs to somebody else (the container's
command).  Python's argparse and getopt each differ from this somewhere, and scripts written for Docker rely on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import NamedTuple

from vch.errors import UsageError


class Kind(Enum):
    """What an option takes."""

    SWITCH = auto()  # nothing, or =true/=false
    VALUE = auto()  # one value; the last one counts
    LIST = auto()  # one value each time it is given


class Flag(NamedTuple):
    """One option: its names, what it takes, and its line in --help."""

    name: str
    short: str
    kind: Kind
    metavar: str
    help: str

    @property
    def shown(self) -> str:
        """How messages name it: "-m, --memory"."""
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"


class Given(NamedTuple):
    """An option that was given, with its value ("true" or "false" for a switch)."""

    flag: Flag
    value: str


# strconv.ParseBool
TRUE_WORDS = frozenset(("1", "t", "T", "TRUE", "true", "True"))
FALSE_WORDS = frozenset(("0", "f", "F", "FALSE", "false", "False"))


class HelpRequested(Exception):
    """--help was given."""


def parse(flags: Iterable[Flag], words: Sequence[str]) -> tuple[list[Given], list[str]]:
    """Splits `words` into the options given, in order, and the rest.

    Raises UsageError with pflag's message, or HelpRequested.
    """
    long = {flag.name: flag for flag in flags}
    short = {flag.short: flag for flag in long.values() if flag.short}
    given: list[Given] = []
    rest = list(words)
    while rest:
        word = rest[0]
        if word == "--":
            return given, rest[1:]
        if not word.startswith("-") or word == "-":
            break
        del rest[0]
        if word.startswith("--"):
            given.append(_long(long, word, rest))
        else:
            _shorts(short, word, rest, given)
    return given, rest


def bad_value(flag: Flag, value: str, why: str) -> UsageError:
    """The error for a value that an option cannot have."""
    return UsageError(f'invalid argument "{value}" for "{flag.shown}" flag: {why}')


def truth(given: Given) -> bool:
    """The value of a switch."""
    return given.value == "true"


def _long(long: dict[str, Flag], word: str, rest: list[str]) -> Given:
    name, equals, value = word[2:].partition("=")
    if not name or name.startswith("-"):
        raise UsageError(f"bad flag syntax: {word}")
    flag = long.get(name)
    if flag is None:
        if name == "help":
            raise HelpRequested
        raise UsageError(f"unknown flag: --{name}")
    if equals:
        return _checked(flag, value)
    if flag.kind is Kind.SWITCH:
        return Given(flag, "true")
    if not rest:
        raise UsageError(f"flag needs an argument: --{name}")
    return _checked(flag, rest.pop(0))


def _shorts(short: dict[str, Flag], word: str, rest: list[str], given: list[Given]) -> None:
    """One word of short options: -it, -eA=B, -e=A=B, -e A=B."""
    letters = word[1:]
    while letters:
        letter, after = letters[0], letters[1:]
        flag = short.get(letter)
        if flag is None:
            if letter == "h":
                raise HelpRequested
            raise UsageError(f"unknown shorthand flag: '{letter}' in -{letters}")
        if len(after) > 1 and after[0] == "=":
            given.append(_checked(flag, after[1:]))
            return
        if flag.kind is Kind.SWITCH:
            given.append(Given(flag, "true"))
            letters = after
            continue
        if after:
            given.append(_checked(flag, after))
        elif rest:
            given.append(_checked(flag, rest.pop(0)))
        else:
            raise UsageError(f"flag needs an argument: '{letter}' in -{letters}")
        return


def _checked(flag: Flag, value: str) -> Given:
    if flag.kind is not Kind.SWITCH:
        return Given(flag, value)
    if value in TRUE_WORDS:
        return Given(flag, "true")
    if value in FALSE_WORDS:
        return Given(flag, "false")
    raise bad_value(flag, value, f'strconv.ParseBool: parsing "{value}": invalid syntax')
