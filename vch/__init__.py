"""The appliance: container images as virtual machines, for programs and for the command line.

    from vch import Machine, Stdio

The names below are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vch.errors import BootError, DeadlineError, GuestError, MachineError, MachineLostError, OperationError
    from vch.machine import Machine
    from vch.qemu import MachineConfig
    from vch.session import Session, Stdio

_HOMES = {
    "BootError": "errors",
    "DeadlineError": "errors",
    "GuestError": "errors",
    "Machine": "machine",
    "MachineConfig": "qemu",
    "MachineError": "errors",
    "MachineLostError": "errors",
    "OperationError": "errors",
    "Session": "session",
    "Stdio": "session",
}

__all__ = [
    "BootError",
    "DeadlineError",
    "GuestError",
    "Machine",
    "MachineConfig",
    "MachineError",
    "MachineLostError",
    "OperationError",
    "Session",
    "Stdio",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value
