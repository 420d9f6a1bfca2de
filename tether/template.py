"""Being a template: everything is done that can be done before there is a spec, then the VM waits to be cloned.

The appliance freezes the VM while it waits in `_read`, and each clone goes on from there, with the same memory.  What
no two VMs may share is therefore not made before the Wake has come: the link's end, everything random, the time.

Only a kernel that was given tether.template imports this module; it may import as much as it likes, because clones
find it all in memory.
"""

import gc
import os
import select
import sys

from tether import files
from tether.faults import TetherError
from tether.hostlink import FixedLine
from tether.identity import take_identity
from tether.link.errors import LinkError
from tether.link.waking import HEADER_BYTES, WAITING, Wake, body_length, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.steps import Steps
    from tether.vsockline import VsockLine

NOT_WARMED = ("tether.__main__", "tether.alone", "tether.medium", "tether.vsockline")  # not for a VM that is cloned


def be_cloned(line: "FixedLine | VsockLine", steps: "Steps") -> None:
    """Warms up, waits, and comes back as a clone that has an identity of its own.  Raises TetherError."""
    if not isinstance(line, FixedLine):
        raise TetherError("tether.template", "the memory of a VM whose link is vsock is not its own",
                          hint="clones have a virtio-serial port")
    warm_up()
    wake = wait_for_wake(line.transport.fd)
    steps.taken()  # those of the template are not this VM's
    with steps("wake up"):
        take_identity(wake.identity)


def warm_up() -> None:
    """Imports whatever the agent may ever need, does once what it will do, and tidies up."""
    for name in _modules():
        if name not in NOT_WARMED:
            __import__(name)
    _rehearse()
    gc.collect()
    gc.freeze()


def wait_for_wake(port: int) -> Wake:
    """Says that this VM can be frozen, and waits; in each clone it gives what that clone was woken with."""
    os.write(port, WAITING)
    try:
        header = _read(port, HEADER_BYTES)
        return unpack(header, _read(port, body_length(header)))
    except LinkError as error:
        raise TetherError("message that wakes a clone", str(error),
                          hint="report it: this template was made for another version of vch") from error


def _read(port: int, count: int) -> bytes:
    """So many bytes of the port, awaited for ever: a template has all the time of the world."""
    poll = select.poll()
    poll.register(port, select.POLLIN)
    data = b""
    while len(data) < count:
        poll.poll()
        try:
            data += os.read(port, count - len(data))
        except BlockingIOError:
            continue
    return data


def _modules() -> list[str]:
    """Every module of the agent that is in the boot image."""
    found = []
    for place in sys.modules["tether"].__path__:
        for folder, package in ((place, "tether"), (f"{place}/link", "tether.link")):
            found += [f"{package}.{name.partition('.')[0]}" for name in sorted(os.listdir(folder))
                      if name.endswith((".py", ".pyc")) and not name.startswith("__")]
    return found


def _rehearse() -> None:
    """What every start does and nothing remembers: the first fork, the first look at /proc."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    files.read("/proc/vmstat")
