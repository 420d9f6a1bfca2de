"""Kernel modules: what the initramfs brings along for a kernel that has its drivers outside."""

import errno
import os

from tether import files
from tether.syscalls import finit_module

FOLDER = "/lib/modules"
LOAD_LIST = "/lib/modules/load"  # names of files beside it, in load order; absent where everything is built in


def load_modules() -> None:
    """Loads the modules of the list, in order.  Raises OSError with the module's name."""
    listed = files.read_if_there(LOAD_LIST)
    for name in (listed or b"").decode().split():
        handle = os.open(f"{FOLDER}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            finit_module(handle, name)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENODEV):  # there already; hardware that is not in this VM
                raise
        finally:
            os.close(handle)
