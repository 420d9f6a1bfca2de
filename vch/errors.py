"""What can go wrong while machines are planned, booted and used: the host's tree of errors, continued.

    OperationError (imagebuild.errors)
    ├── UsageError            the command line; the text is Docker's where Docker has one
    ├── SettingsError         config.toml or a VCH_ variable
    ├── HostError             this host cannot do it: no QEMU, a port that is taken, a name that is taken
    └── MachineError          a machine, once it exists
        ├── BootError         it did not come up: nothing of the container ran
        ├── MachineLostError  QEMU is gone, the guest panicked, the link broke: the container *may* have run
        ├── GuestError        tether refused or failed; `fault` is its own account
        └── DeadlineError     something awaited did not happen in time
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imagebuild.errors import OperationError

if TYPE_CHECKING:
    from tether.link.messages import Fault

__all__ = [
    "BootError",
    "DeadlineError",
    "GuestError",
    "HostError",
    "MachineError",
    "MachineLostError",
    "OperationError",
    "SettingsError",
    "UsageError",
]


class UsageError(OperationError):
    """A command line that cannot be understood.  `command` is what `--help` is offered for ("vch run")."""

    def __init__(self, message: str, command: str = "vch run") -> None:
        super().__init__("", "", message)
        self.command = command


class SettingsError(OperationError):
    """A setting that is unknown or has a value that it cannot have."""


class HostError(OperationError):
    """The host lacks something, or somebody else has it."""


class MachineError(OperationError):
    """A machine failed.  `console` is the end of what its console said, for those who want to see more."""

    def __init__(self, step: str, subject: str, cause: str, remedy: str = "", console: str = "") -> None:
        super().__init__(step, subject, cause, remedy)
        self.console = console


class BootError(MachineError):
    """The machine did not come up."""


class MachineLostError(MachineError):
    """The machine is gone without having said goodbye."""


class DeadlineError(MachineError):
    """What was waited for did not happen in time; the machine may be well all the same."""


class GuestError(MachineError):
    """The guest said why it could not do what it was asked to."""

    def __init__(self, fault: Fault, console: str = "") -> None:
        cause = fault.text if not fault.errno or fault.errno in fault.text else f"{fault.text} [{fault.errno}]"
        super().__init__(fault.step, fault.object, cause, fault.hint, console)
        self.fault = fault
