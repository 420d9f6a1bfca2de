"""Being a template: everything is done that can be done before there is a spec, then the VM waits to be cloned.

The appliance freezes the VM while it waits in `_read`, and each clone goes on from there, with the same memory.  What
no two VMs may share is therefore made when the Wake has come: everything random, the link's end with it, the time.

A clone may be told to Prepare for an image instead of being woken: then it becomes a template again, of that image.

Only a kernel that was given tether.template imports this module; it may import as much as it likes, because clones
find it all in memory.
"""

import gc
import os
import select
import stat
import sys
from contextlib import suppress

from tether.faults import TetherError
from tether.groundwork import Groundwork
from tether.hostlink import FixedLine
from tether.identity import take_identity
from tether.kernel import files
from tether.link.errors import LinkError
from tether.link.waking import HEADER_BYTES, WAITING, Prepare, Wake, body_length, unpack
from tether.rootfs.inside import open_inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal

    from tether.init import BootImage
    from tether.link.endpoint import Endpoint
    from tether.steps import Steps
    from tether.vsockline import VsockLine
else:
    import _signal

# What resolves users, the shell (in many small images all programs are one file), and C libraries: glibc's and musl's.
READ_EARLY = (b"/etc/passwd", b"/etc/group", b"/bin/sh", b"/lib64/ld-linux-x86-64.so.2",
              b"/lib/x86_64-linux-gnu/libc.so.6", b"/lib/ld-musl-x86_64.so.1")
READ_BYTES = 4 << 20  # of each: the largest, glibc, has 2 MB
NOT_WARMED = ("tether.__main__", "tether.sources", "tether.vsockline")  # and below: not for a VM that is cloned


def be_cloned(line: "FixedLine | VsockLine", endpoint: "Endpoint", steps: "Steps") -> Groundwork | None:
    """Warms up, waits, and comes back as a clone that has an identity of its own, its end of the link too.

    Gives what was done already, if it is a clone of an image's template.  Raises TetherError.
    """
    if not isinstance(line, FixedLine):
        raise TetherError("tether.template", "the memory of a VM whose link is vsock is not its own",
                          hint="clones have a virtio-serial port")
    warm_up()
    groundwork = None
    while isinstance(heard := wait_for_word(line.transport.fd), Prepare):
        groundwork = Groundwork(heard.root, heard.interfaces)
        groundwork.build(steps)
        groundwork.prepare(steps, heard.capabilities)
        read_early(groundwork.handle)
        os.sync()  # or each clone would write out the same
    steps.taken()  # those of the template are not this VM's
    with steps("wake up"):
        take_identity(heard.identity)
        endpoint.renew()
    return groundwork


def read_early(root: int) -> None:
    """Reads what most containers begin with: it stays in memory, which the clones share, and none reads its disk then.

    What an image does not have, or cannot be read, is left to whoever asks for it.
    """
    for path in READ_EARLY:
        with suppress(OSError):
            handle = open_inside(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                if stat.S_ISREG(os.fstat(handle).st_mode):
                    os.read(handle, READ_BYTES)
            finally:
                os.close(handle)


def warm_up() -> None:
    """Imports whatever a clone may ever need, does once what it will do, and tidies up."""
    boot_image: BootImage = sys.meta_path[0]  # type: ignore[assignment]  # /init has put it there
    boot_image.import_late(NOT_WARMED)
    _rehearse()
    gc.collect()
    gc.freeze()


def wait_for_word(port: int) -> Wake | Prepare:
    """Says that this VM can be frozen, and waits; in each clone it gives the first word that the clone hears."""
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


def _rehearse() -> None:
    """What every start does and nothing remembers: the first fork, the first look at /proc."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGCHLD,))
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    _signal.sigwait((_signal.SIGCHLD,))  # or each clone would look for a child that has ended
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGCHLD,))
    files.read("/proc/vmstat")
