"""The documentation is true: every command in it is run, and prints what the page says.

A fenced block marked `console` is a transcript: lines that begin with "$ " are commands for sh (a trailing backslash
goes on), the lines up to the next command are what they print, "..." stands for anything.  "[exit N]" as the last line
says which status is expected when it is not 0.  Commands run in order, in the checkout, with `.venv/bin` first in PATH;
what a page assigns (NAME=...) holds for its later commands.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMMAND_SECONDS = 600
MAKE_TELLS = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS"}
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ASSIGNMENT = re.compile(r"\w+=(\$\([^)]*\)|\S*)$")
# Commands that a test must not run, each with the reason.
NOT_HERE = {
    "make test": "it is what runs this test",
    "make pico": "twelve minutes of compiling",
    "make bench": "minutes of measuring",
}


@dataclass(frozen=True)
class Command:
    """One command of a transcript, with what the page says it prints and returns."""

    text: str
    prints: str
    status: int


def transcript(block: str) -> Iterator[Command]:
    """The commands of one block."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        last = next(index for index, line in enumerate(lines) if not line.endswith("\\"))
        prints, status = lines[last + 1 :], 0
        while prints and not prints[-1].strip():
            prints.pop()
        if prints and (found := re.fullmatch(r"\[exit (\d+)\]", prints[-1])):
            status = int(found[1])
            prints.pop()
        yield Command("\n".join(lines[: last + 1]), "".join(line + "\n" for line in prints), status)


@pytest.fixture(scope="module", autouse=True)
def set_up() -> None:
    """The pages show what a checkout prints that is set up; a newer setup.cfg makes `make` set it up once more."""
    environment = {name: value for name, value in os.environ.items() if name not in MAKE_TELLS}
    subprocess.run(["make", "--no-print-directory", "setup"], cwd=ROOT, env=environment, check=True,
                   stdout=subprocess.PIPE, timeout=COMMAND_SECONDS)  # fmt: skip


@pytest.mark.vm
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=lambda page: page.name)
def test_every_command_of_the_page_does_what_the_page_says(page: Path, home: Path) -> None:
    assigned = ""
    path = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
    # A `make run` below this `make test` is to be as a user types it: what make tells its children says otherwise.
    outer = {name: value for name, value in os.environ.items() if name not in MAKE_TELLS}
    environment = {**outer, "VCH_HOME": str(home), "PATH": path, "COLUMNS": "120"}
    for block in BLOCK.findall(page.read_text()):
        for command in transcript(block):
            if command.text in NOT_HERE:
                continue
            if ASSIGNMENT.match(command.text):
                assigned += command.text + "\n"
                continue
            run = subprocess.run(
                ["sh", "-c", assigned + command.text], cwd=ROOT, env=environment, timeout=COMMAND_SECONDS, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            assert run.returncode == command.status, f"{command.text}\n{run.stdout}"
            same = doctest.OutputChecker().check_output(command.prints, run.stdout, doctest.ELLIPSIS)
            assert same, f"{command.text}\nthe page says:\n{command.prints}\nit printed:\n{run.stdout}"


def test_a_transcript_is_read_as_it_is_written() -> None:
    block = "$ echo a \\\n  b\na b\n\n$ false\n[exit 1]\n$ true\n"
    assert list(transcript(block)) == [
        Command("echo a \\\n  b", "a b\n", 0),
        Command("false", "", 1),
        Command("true", "", 0),
    ]
