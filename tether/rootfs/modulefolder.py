"""The running kernel's modules, shown to a container that may load them.

They are in the boot image, and only there.  Imported late: a kernel without modules and a process without the
capability SYS_MODULE have no use for it.
"""

import os

from tether.kernel import files
from tether.kernel.modules import DEMAND_LIST, FOLDER, LOAD_LIST, parse_demand
from tether.kernel.pid1 import kernel_release
from tether.kernel.syscalls import MS_BIND, MS_RDONLY, MS_REMOUNT
from tether.rootfs.inside import Mount, mount_folder, open_inside
from tether.spec import Process

SYS_MODULE = "SYS_MODULE"


def may_load(process: Process) -> bool:
    """Whether root in the container may load modules."""
    return process.capabilities is None or SYS_MODULE in process.capabilities


def show_modules(root: int) -> None:
    """Mounts them read-only at /lib/modules/RELEASE, unless the image has something there.  Raises TetherError."""
    place = f"/lib/modules/{kernel_release()}".encode()
    try:
        os.close(open_inside(root, place))
        return
    except FileNotFoundError:
        pass  # the usual case: mounted below
    loaded, demanded = (files.read_if_there(name) or b"" for name in (LOAD_LIST, DEMAND_LIST))
    files.write(f"{FOLDER}/modules.dep", dependencies(loaded.decode(), demanded.decode()).encode())
    item = Mount(path=place, source=FOLDER, flags=MS_BIND)
    mount_folder(root, item)
    mount_folder(root, item.but(flags=MS_BIND | MS_REMOUNT | MS_RDONLY))


def dependencies(loaded: str, demanded: str) -> str:
    """What modprobe(8) reads (modules.dep(5)): a line for each file, with the files that it needs, nearest first."""
    needs: dict[str, list[str]] = {name: [] for name in loaded.split()}
    for names in parse_demand(demanded).values():
        for at, name in enumerate(names):
            needs.setdefault(name, names[:at][::-1])
    return "".join(f"{name}: {' '.join(others)}".rstrip() + "\n" for name, others in needs.items())
