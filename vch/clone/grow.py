"""Making the template of an image: a copy of the plain one builds the image's root and switches its NIC on, and is
frozen again.

    memory copied ─► QEMU takes on the state ─► disks plugged in ─► Prepare ─► WAITING ─► frozen

Its clones find their layers mounted and stacked.  What the container's disk held at that moment is kept beside the
memory (vch/clone/top.py).
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from tether.link.waking import Prepare
from vch.clone.key import ROOT_DRIVES, grown_of
from vch.clone.make import MIB, Freezer, facts_of
from vch.clone.store import MEMORY, STATE, TOP, Store, Template
from vch.clone.top import copy_sparse
from vch.disks import DiskSet
from vch.errors import HostError
from vch.qemu.config import Frozen, MachineConfig

MORE_MIB = 64  # what the copy may take besides what it copies: the image's metadata, its state, the disk


def grow_template(
    config: MachineConfig, program: str, key: str, store: Store, *, prepare: Prepare, plain: Template
) -> bool:
    """Makes the template that is prepared so, out of the `plain` one; False if another process is making it.

    Raises OperationError if it cannot be made here; nothing is left of it then.
    """
    held = os.fstat(plain.memory).st_blocks * 512
    if store.room() < held + MORE_MIB * MIB:
        cause = f"{store.room() // MIB} MiB are free, and it takes up to {held // MIB + MORE_MIB}"
        raise HostError("make template", str(store.folder), cause, "set VCH_TEMPLATES to a folder with more room")
    with store.making(key) as scratch, ExitStack() as opened:
        if scratch is None:
            return False
        try:
            files = []
            for name in (MEMORY, STATE, TOP):
                files.append(os.open(scratch / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                opened.callback(os.close, files[-1])
            memory, state, top = files
            copy_sparse(plain.memory, memory)
            disks = DiskSet(scratch)
            opened.callback(disks.close)
            image, own = config.drives[:ROOT_DRIVES]
            disks.drives.append(image)
            disks.add_file(own.serial, top, os.fstat(config.fd_sets[own.content]).st_size)
            grown = grown_of(config, Frozen(memory, plain.state), disks)
            Freezer(grown, program, into=state, prepare=prepare).freeze()
            store.complete(scratch, facts_of(config, key, memory, state, top))
        except OSError as error:
            raise HostError("make template", str(store.folder), error.strerror or str(error)) from error
        finally:  # QEMU has read it, and whoever falls back on the plain one reads it again
            os.lseek(plain.state, 0, os.SEEK_SET)
    return True
