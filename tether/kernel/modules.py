"""Kernel modules: what the initramfs brings along for a kernel that has its drivers outside."""

import errno
import os

from tether.kernel import files
from tether.kernel.syscalls import finit_module

FOLDER = "/lib/modules"
DEMAND_LIST = "/lib/modules/demand"  # a line for each module carried along: its name, its files in load order
LOAD_LIST = "/lib/modules/load"  # names of files beside it, in load order; absent where everything is built in


def load_modules() -> bool:
    """Loads the modules of the list, in order, and removes their files: they are memory.

    True if there are others, to be loaded on demand: this VM's kernel has its drivers in modules.  Raises OSError with
    the module's name.
    """
    listed = files.read_if_there(LOAD_LIST)
    names = (listed or b"").decode().split()
    _load(names)
    for name in names:
        os.unlink(f"{FOLDER}/{name}")
    return os.path.exists(DEMAND_LIST)


def load_on_demand(*wanted: str) -> None:
    """Loads modules that few VMs need.  One that is not carried along is built in, or will be missed with a message."""
    listed = files.read_if_there(DEMAND_LIST)
    carried = parse_demand((listed or b"").decode())
    for name in wanted:
        _load(carried.get(name, []))


def parse_demand(text: str) -> dict[str, list[str]]:
    """Module name -> its files in load order."""
    lines = (line.split() for line in text.splitlines())
    return {words[0]: words[1:] for words in lines if words}


def _load(names: list[str]) -> None:
    for name in names:
        handle = os.open(f"{FOLDER}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            finit_module(handle, name)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENODEV):  # there already; hardware that is not in this VM
                raise
        finally:
            os.close(handle)
