"""The appliance: container images as virtual machines, for programs and for the command line.

    import vch

    with vch.Machine("debian:12") as machine:
        print(machine.exec("uname", "-a").stdout)

The names below are loaded when first used, so that importing the package costs nothing.  docs/machine.md explains them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vch.errors import (
        BootError,
        DeadlineError,
        GuestError,
        HostError,
        MachineError,
        MachineLostError,
        OperationError,
        UsageError,
    )
    from vch.machine.files import Change, ChangeKind
    from vch.machine.session import Session, Stdio
    from vch.pool import Pool
    from vch.program import Completed, ProgramFailedError
    from vch.sandbox import Machine

_HOMES = {
    "BootError": "errors",
    "Change": "machine.files",
    "ChangeKind": "machine.files",
    "Completed": "program",
    "DeadlineError": "errors",
    "GuestError": "errors",
    "HostError": "errors",
    "Machine": "sandbox",
    "MachineError": "errors",
    "MachineLostError": "errors",
    "OperationError": "errors",
    "Pool": "pool",
    "ProgramFailedError": "program",
    "Session": "machine.session",
    "Stdio": "machine.session",
    "UsageError": "errors",
}

__all__ = [
    "BootError",
    "Change",
    "ChangeKind",
    "Completed",
    "DeadlineError",
    "GuestError",
    "HostError",
    "Machine",
    "MachineError",
    "MachineLostError",
    "OperationError",
    "Pool",
    "ProgramFailedError",
    "Session",
    "Stdio",
    "UsageError",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value
