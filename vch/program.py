"""What a program that ran in a machine has left: exit code and output."""

from __future__ import annotations

from dataclasses import dataclass

from vch.errors import MachineError


@dataclass(frozen=True)
class Completed:
    """A program that has ended.  `code` is its exit code, 128 + n after signal n, as a shell has it."""

    args: tuple[str, ...]
    code: int
    output: bytes = b""
    error_output: bytes = b""
    truncated: bool = False
    """It wrote more than was to be kept."""

    @property
    def stdout(self) -> str:
        """What it wrote, as text; what is no UTF-8 is replaced."""
        return self.output.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """What it wrote to standard error, as text."""
        return self.error_output.decode("utf-8", "replace")


class ProgramFailedError(MachineError):
    """A program that was to succeed did not; `completed` is what it left."""

    def __init__(self, completed: Completed) -> None:
        last = completed.stderr.strip().splitlines()[-1:]
        cause = f"exit code {completed.code}" + (f": {last[0]}" if last else "")
        super().__init__("run", " ".join(completed.args), cause)
        self.completed = completed
