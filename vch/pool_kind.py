"""Which machines of a pool can stand in for each other, and how one more of a kind is started."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tether.link.waking import Prepare
from vch.clone.key import ROOT_DRIVES, growable, rooted, smaller
from vch.clone.origin import Cloning
from vch.disks import DiskSet
from vch.machine.machine import Machine
from vch.qemu.config import Drive, MachineConfig

_WAITING_MAC = "02:00:00:00:00:01"  # of a machine that waits and was not cloned; it gets its own when it is taken


@dataclass(frozen=True)
class WaitingRoot:
    """The root filesystem that a machine waits with: an image's disk, an empty one, and what is done with them."""

    home: Path
    image: Drive
    top_serial: str
    top_bytes: int
    prepare: Prepare

    def disks(self) -> DiskSet:
        """The disks, once more.  Raises HostError.  The caller closes them when QEMU has them."""
        made = DiskSet(self.home)
        made.drives.append(self.image)
        made.add_unnamed(self.top_serial, self.top_bytes, blank=True)
        return made


@dataclass
class Kind:
    """Machines that differ in nothing but what they are given when they are taken."""

    config: MachineConfig
    program: str
    cloning: Cloning | None
    root: WaitingRoot | None
    waiting: list[Machine] = field(default_factory=list)
    due: float = math.inf
    """When the next one may be started (time.monotonic); inf while one is being taken."""

    def covers(self, other: Kind) -> bool:
        """Whether a machine of this kind can become one of the other: it is alike, or has less memory."""
        config = smaller(other.config, self.config.memory_mib) or other.config
        return (self.config, self.program, self.root) == (config, other.program, other.root)

    def start(self, on_detail: Callable[[str], None], starting: Callable[[Machine], None]) -> Machine:
        """One more, which is given to `starting` before anything takes time.  Raises OperationError."""
        disks = self.root.disks() if self.root is not None else DiskSet(Path())
        try:
            config = self.config._replace(drives=tuple(disks.drives), fd_sets=disks.fd_sets)
            machine = Machine(config, self.program, cloning=self.cloning, on_detail=on_detail)
            starting(machine)
            machine.boot()
        finally:
            disks.close()
        return machine


def kind_of(config: MachineConfig, home: Path, program: str, cloning: Cloning | None, *, with_root: bool) -> Kind:
    """The kind of the machine `config`, whose unnamed disks are on the file system of `home`."""
    plain = None if config.network is None else config.network._replace(mac=_WAITING_MAC, published=())
    bare = growable(config._replace(name="pool", drives=(), fd_sets={}, network=plain))
    if not with_root or cloning is None or cloning.prepare is None or not rooted(config):
        return Kind(bare, program, cloning, None)
    image, top = config.drives[:ROOT_DRIVES]
    size = os.fstat(config.fd_sets[top.content]).st_size
    root = WaitingRoot(home, image, top.serial, size, cloning.prepare)
    return Kind(bare, program, cloning._replace(eager=True), root)
