"""Which machines can be clones of one template: those whose templates would be started by the same words.

A template is started like any machine, without what differs from one machine to the next: disks are plugged into the
clone, the NIC leads nowhere, and the memory is a file.  So the command line says almost everything that the state of
the template depends on.  What it does not say is in the files that it names and in the processor of the host.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

from tether.link.record import encode
from tether.link.waking import Prepare
from vch.disks import DiskSet
from vch.qemu import config as qemu
from vch.qemu.config import BLOCK_MIB, Channels, Frozen, LinkKind, MachineConfig, Role, UserNetwork

FORMAT = 3  # of the files of a template, and of what its guest and its clones' hosts agree on
TEMPLATE_WORD = "tether.template"  # of the kernel command line (tether/kernel/kernelargs.py)
_DEBUG_WORD, _QUIET_WORD = "tether.debug", "quiet"
ROOT_DRIVES = 2  # of a machine: its image, and what the container writes (vch/launch.py)
_CPU_FACTS = ("vendor_id", "model name", "stepping", "flags")
_CPU_BYTES = 16384  # of /proc/cpuinfo: more than what it says of one processor
_NOWHERE = Channels(0, 0, 0)
GROWS_TO_MIB = 64 << 10  # the room for memory that is added to clones: it costs nothing until it is used


def fits(config: MachineConfig) -> bool:
    """Whether this machine may be a clone: its link's state is in its memory, and its devices are the usual ones."""
    usual = config.link is LinkKind.VIRTIO_SERIAL and config.link_path is None and not config.devices
    usual = usual and not config.gives_back  # or the clone would take pages out of the template's file
    return usual and config.role is Role.COLD and TEMPLATE_WORD not in config.boot.arguments


def growable(config: MachineConfig) -> MachineConfig:
    """This machine with room for more memory, as every template and every clone has it."""
    room = GROWS_TO_MIB if fits(config) and config.memory_mib < GROWS_TO_MIB else 0
    return config._replace(max_memory_mib=config.max_memory_mib or room)


def smaller(config: MachineConfig, memory_mib: int) -> MachineConfig | None:
    """The machine of `memory_mib` that becomes this one when the rest is plugged in; None if none does.

    Memory is added in whole blocks, and not taken away.
    """
    missing = config.memory_mib - memory_mib
    if missing <= 0 or missing % BLOCK_MIB or config.memory_mib > growable(config).max_memory_mib:
        return None
    return growable(config)._replace(memory_mib=memory_mib)


def template_of(config: MachineConfig, frozen: Frozen) -> MachineConfig:
    """The machine that this one could be a clone of."""
    arguments = tuple(_QUIET_WORD if word == _DEBUG_WORD else word for word in config.boot.arguments)
    return growable(config)._replace(
        name="template",
        boot=config.boot._replace(arguments=(*arguments, TEMPLATE_WORD)),
        drives=(),
        fd_sets={},
        network=None if config.network is None else UserNetwork(qemu.TEMPLATE_MAC),
        role=Role.TEMPLATE,
        frozen=frozen,
    )


def grown_of(config: MachineConfig, frozen: Frozen, disks: DiskSet) -> MachineConfig:
    """The template of `config` as it gets the root of an image: from the files of the one that has none yet."""
    drives = tuple(disks.drives)
    return template_of(config, frozen)._replace(drives=drives, fd_sets=disks.fd_sets, role=Role.GROWN)


def clone_of(config: MachineConfig, frozen: Frozen, memory_mib: int) -> MachineConfig:
    """This machine as a clone of a template that has `memory_mib`."""
    return growable(config)._replace(memory_mib=memory_mib, role=Role.CLONE, frozen=frozen)


def key_of(config: MachineConfig, program: str) -> str:
    """The key of the template that fits.  Raises OSError if a file that it depends on is not there."""
    words = qemu.command_line(template_of(config, Frozen(0, 0)), _NOWHERE, os.path.realpath(program))
    boot = config.boot
    files = [_file(Path(path)) for path in (program, boot.kernel, boot.initramfs, boot.firmware) if path is not None]
    facts = [f"format {FORMAT}", *words, *files, *_processor()]
    return sha256("\0".join(facts).encode()).hexdigest()[:32]


def rooted(config: MachineConfig) -> bool:
    """Whether its root filesystem is an image's, under a disk that ends with the machine."""
    return [drive.content > 0 for drive in config.drives[:ROOT_DRIVES]] == [False, True]


def rooted_key(key: str, config: MachineConfig, prepare: Prepare) -> str | None:
    """The key of the template that is prepared so; None if there can be none.  `key` is that of the plain one.

    The root must be an image's under a disk that ends with the machine, and these the first disks.
    Raises OSError if a file that it depends on is not there.
    """
    if not rooted(config) or prepare.root.writable is None:
        return None
    drives = config.drives[:ROOT_DRIVES]
    image, top = drives
    size = os.fstat(config.fd_sets[top.content]).st_size
    files = [_file(path) for path in sorted(Path(image.path).parent.iterdir())]
    shape = [f"{drive.serial} {drive.read_only} {drive.volatile}" for drive in drives]
    facts = [key, encode(prepare.but(root=prepare.root.but(read_only=False))), image.path, *files, *shape, size]
    return sha256(repr(facts).encode()).hexdigest()[:32]


def _file(path: Path) -> str:
    """A file by what changes whenever its content does: kernels and boot images are never written in place."""
    real = os.path.realpath(path)
    found = os.stat(real)
    return f"{real} {found.st_size} {found.st_mtime_ns} {found.st_ino}"


def _processor() -> list[str]:
    """What the host's processor is: guests see it under KVM, and some of it under emulation."""
    with open("/proc/cpuinfo", "rb") as file:
        text = file.read(_CPU_BYTES).partition(b"\n\n")[0].decode("ascii", "replace")
    return [line for line in text.splitlines() if line.startswith(_CPU_FACTS)]
