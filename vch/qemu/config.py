"""What QEMU is told: a machine as a record, and the record as a command line.  Pure; vch/qemu/process.py runs it.

Everything the machine talks to is an inherited file descriptor, so it has no path that could be left behind, guessed,
or taken by somebody else:

    qmp      QEMU's monitor                      (vch/qemu/qmp.py)
    link     the port of tether                  (docs/protocol.md)
    console  the 16550 that the kernel and tether's last words go to

The link is a virtio-serial port unless the machine says otherwise: a second 16550 for guests that know nothing better,
or vsock, which is the host kernel's (`kernel_vsock`) or ours (vch/vsock).

Disks are SCSI on one controller present from the start, because a disk added later then needs no new PCI device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from vch.ports import Published
from vch.qemu.user_network import USUAL_ADDRESSES, Addresses, netdev_words

PROGRAM = "qemu-system-x86_64"
LINK_PORT = "org.vch.link.0"  # name of tether's virtio-serial port, as the guest sees it
CONSOLE_DEVICE = "ttyS0"
LINK_UART = "ttyS1"
CONSOLE_SET = 0  # of QEMU's sets of descriptors; disks have those from 1 on
LINK_VSOCK_PORT = 5180  # where tether connects to at a device of our own
MEMORY_SLOTS = 16  # how often memory can be added
BLOCK_MIB = 128  # Linux, memory_block_size_bytes() on x86: memory comes and goes in such blocks
HOST_CID = 2  # VMADDR_CID_HOST
TEMPLATE_MAC = "02:00:00:00:00:00"  # of the NIC of every template, and of a clone's until it has its own
# A clone is not a machine that has moved: it has nothing to announce, and to do so costs it 600 blocks of code.
_NIC = "virtio-net-pci,romfile=,guest_announce=off"


class Accelerator(Enum):
    """Who runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


class LinkKind(Enum):
    """What carries the link."""

    VIRTIO_SERIAL = "virtio-serial"
    UART = "uart"
    VSOCK = "vsock"


class Drive(NamedTuple):
    """A disk: a VMDK descriptor at `path` (also /dev/fdset/N), which the guest finds by `serial`.

    `volatile`: nobody will ever read it after the machine is gone, so the guest's flushes need not reach a disk.
    `content`: the fd set of the file that holds what is on such a disk, which is empty when the machine starts.
    `blank`: it has no file system yet; it gets one when it is known that no template brings it (vch/clone/top.py).
    """

    serial: str
    path: str
    read_only: bool = False
    volatile: bool = False
    content: int = 0
    blank: bool = False


class UserNetwork(NamedTuple):
    """One NIC behind the host's own addresses."""

    mac: str
    published: tuple[Published, ...] = ()
    addresses: Addresses = USUAL_ADDRESSES


class Channels(NamedTuple):
    """What QEMU inherits: ends of socket pairs, and of a pipe for the console (vch/qemu/channel.py)."""

    qmp: int
    link: int
    console: int


class BootFiles(NamedTuple):
    """What is booted, and with which kernel command line."""

    kernel: Path
    initramfs: Path | None
    arguments: tuple[str, ...]
    firmware: Path | None = None
    """None: QEMU's own, SeaBIOS."""
    start: tuple[str, ...] = ()
    """The last words of the command line: which program is PID 1, if not /init."""


class Role(Enum):
    """What a machine is to be."""

    COLD = "cold"  # one that boots, and becomes a container
    TEMPLATE = "template"  # one that boots, and is frozen when it waits for its spec
    GROWN = "grown"  # one that goes on where a template was frozen, gets an image's root, and is frozen again
    CLONE = "clone"  # one that goes on where a template was frozen


class Frozen(NamedTuple):
    """Open files of a template: its memory, and the state of its devices.  It had the first `drives` of its clones."""

    memory: int
    state: int
    drives: int = 0


class KernelVsock(NamedTuple):
    """The host kernel's vsock: its open device, which holds the guest's CID, and the port where we listen."""

    fd: int
    cid: int
    port: int


class MachineConfig(NamedTuple):
    """A machine, completely."""

    name: str
    accelerator: Accelerator
    memory_mib: int
    cpus: int
    boot: BootFiles
    drives: tuple[Drive, ...] = ()
    network: UserNetwork | None = None
    fd_sets: Mapping[int, int] = MappingProxyType({})
    """Files that drives name as /dev/fdset/N: N -> file descriptor that QEMU inherits."""
    link: LinkKind = LinkKind.VIRTIO_SERIAL
    kernel_vsock: KernelVsock | None = None
    """With VSOCK: the host kernel's; None: the link's channel is a vhost-user backend.  The driver decides."""
    link_path: Path | None = None
    """QEMU listens there for the link, so that it can be cut and connected anew; then `Channels.link` is not used."""
    max_memory_mib: int = 0
    """How much memory it may be given while it runs; 0: none but its own."""
    max_cpus: int = 0
    """How many processors it may be given while it runs; 0: none but its own."""
    gives_back: bool = False
    """Memory that the guest frees is given back to the host (virtio-balloon, free page reporting).  Never in a clone:
    QEMU would punch the pages out of the template's file (softmmu/physmem.c, ram_block_discard_range)."""
    devices: tuple[str, ...] = ()
    """More words for the command line: benches and tests put a raw port beside the link."""
    device_fds: tuple[int, ...] = ()
    """File descriptors that these speak of."""
    role: Role = Role.COLD
    frozen: Frozen | None = None
    """The files to freeze a template into, or to clone it from; None for a machine that has nothing to do with one."""


def command_line(config: MachineConfig, channels: Channels, program: str = PROGRAM) -> list[str]:
    """The whole of it."""
    return [
        program,
        *_base(config),
        *_channels(channels),
        *_link(config, channels.link),
        *(("-device", "virtio-balloon-pci,free-page-reporting=on") if config.gives_back else ()),
        *config.devices,
        *_drives(config),
        *_network(config),
        *_boot(config),
    ]


def inherited(config: MachineConfig, channels: Channels) -> tuple[int, ...]:
    """The file descriptors that the command line speaks of."""
    vsock = (config.kernel_vsock.fd,) if config.kernel_vsock else ()
    frozen = (config.frozen.memory, config.frozen.state) if config.frozen is not None else ()
    fds = (channels.qmp, channels.link, channels.console, *vsock, *config.fd_sets.values(), *config.device_fds)
    return (*fds, *frozen)


def _base(config: MachineConfig) -> list[str]:
    cpu = {
        # Everything the host or the emulator has: images are built for x86-64-v2 and v3 by now.  Five-level page
        # tables and nested virtualisation cost time in an emulator and serve nobody here.
        Accelerator.KVM: "host",
        # erms: with it kernel and C library copy memory by `rep movsb`, which an emulator does byte by byte; without, a
        # read of 64 KiB takes 28 us instead of 174, and a port carries three times as much.
        Accelerator.TCG: "max,la57=off,svm=off,erms=off",
    }[config.accelerator]
    accelerator = "kvm" if config.accelerator is Accelerator.KVM else "tcg,thread=multi"
    return [
        *("-name", f"guest={_escaped(config.name)}"),
        "-nodefaults",
        "-no-user-config",
        *("-display", "none"),
        "-no-reboot",  # a guest that panics reboots at once (panic=-1), which ends QEMU
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", "pc,usb=off,vmport=off,hpet=off"),
        *("-accel", accelerator),
        *("-cpu", cpu),
        *("-smp", f"{config.cpus},maxcpus={config.max_cpus}" if config.max_cpus else str(config.cpus)),
        *("-m", f"{config.memory_mib}M{_room_for_memory(config)}"),
        *_memory(config),
        *("-object", "rng-random,id=entropy,filename=/dev/urandom"),
        *("-device", "virtio-rng-pci,rng=entropy"),
    ]


def _memory(config: MachineConfig) -> list[str]:
    """A template's memory is a file; a clone maps it copy-on-write, so what it does not change is shared by all.

    The file is named by its open descriptor: it may be removed while clones of it run.
    """
    if config.frozen is None:
        return []
    share = "off,reserve=off" if config.role is Role.CLONE else "on"  # or each clone would be counted in full
    path = f"/proc/self/fd/{config.frozen.memory}"
    return [
        *("-object", f"memory-backend-file,id=ram,size={config.memory_mib}M,mem-path={path},share={share}"),
        *("-machine", "memory-backend=ram"),
    ]


def _room_for_memory(config: MachineConfig) -> str:
    return f",slots={MEMORY_SLOTS},maxmem={config.max_memory_mib}M" if config.max_memory_mib else ""


def _channels(channels: Channels) -> list[str]:
    """append=on, or QEMU would empty the file at first, which a pipe does not know."""
    return [
        *("-chardev", f"socket,id=qmp,fd={channels.qmp}"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-add-fd", f"fd={channels.console},set={CONSOLE_SET}"),
        *("-chardev", f"file,id=console,path=/dev/fdset/{CONSOLE_SET},append=on"),
        *("-serial", "chardev:console"),
    ]


def _link(config: MachineConfig, fd: int) -> list[str]:
    """The link's device.  A vhost-user backend reads the guest's memory, so that must be shared with it."""
    vsock = config.kernel_vsock
    if config.link is LinkKind.VSOCK and vsock is not None:
        return ["-device", f"vhost-vsock-pci,guest-cid={vsock.cid},vhostfd={vsock.fd}"]
    path = config.link_path
    chardev = f"path={_escaped(str(path))},server=on,wait=off" if path else f"fd={fd}"
    words = ["-chardev", f"socket,id=link,{chardev}"]
    if config.link is LinkKind.UART:
        return [*words, "-serial", "chardev:link"]
    if config.link is LinkKind.VSOCK:
        return [
            *("-object", f"memory-backend-memfd,id=ram,size={config.memory_mib}M,share=on"),
            *("-machine", "memory-backend=ram"),
            *words,
            *("-device", "vhost-user-vsock-pci,chardev=link"),
        ]
    return [
        *words,
        *("-device", "virtio-serial-pci,id=ports"),
        *("-device", f"virtserialport,bus=ports.0,chardev=link,name={LINK_PORT}"),
    ]


def link_argument(config: MachineConfig) -> tuple[str, ...]:
    """The word of the kernel command line that tells tether; none for its default."""
    port = config.kernel_vsock.port if config.kernel_vsock else LINK_VSOCK_PORT
    where = {
        LinkKind.VIRTIO_SERIAL: "",
        LinkKind.UART: f"uart:{LINK_UART}",
        LinkKind.VSOCK: f"vsock:{HOST_CID}:{port}",
    }[config.link]
    return (f"tether.link={where}",) if where else ()


def _drives(config: MachineConfig) -> list[str]:
    words = []
    for number, descriptor in sorted(config.fd_sets.items()):
        words += ["-add-fd", f"fd={descriptor},set={number}"]
    words += ["-device", "virtio-scsi-pci,id=scsi"]
    for index, drive in enumerate(config.drives[: there_at_once(config)]):
        words += ["-blockdev", json.dumps(blockdev(node_name(index), drive))]
        driver, *properties = disk_device(index, drive).items()
        words += ["-device", ",".join([str(driver[1]), *(f"{key}={value}" for key, value in properties)])]
    return words


def there_at_once(config: MachineConfig) -> int:
    """How many drives it has when it starts: a clone those of its template, the others are plugged in (vch/clone)."""
    if config.role in (Role.CLONE, Role.GROWN):
        return config.frozen.drives if config.frozen is not None else 0
    return len(config.drives)


def node_name(index: int) -> str:
    """Of the drive with this index."""
    return f"drive{index}"


def disk_device(index: int, drive: Drive) -> dict[str, object]:
    """The device of a drive, as -device and QMP's device_add take it."""
    device = {"driver": "scsi-hd", "bus": "scsi.0", "lun": index, "drive": node_name(index), "serial": drive.serial}
    # Without space on the host the machine stops (vch/qemu/full_disk.py); other errors are the guest's to handle.
    return device if drive.read_only else {**device, "werror": "enospc"}


def blockdev(node: str, drive: Drive) -> dict[str, object]:
    """The block node of a drive, as -blockdev and QMP's blockdev-add take it."""
    return {
        "driver": "vmdk",
        "node-name": node,
        "read-only": drive.read_only,
        "discard": "unmap",
        "cache": {"direct": False, "no-flush": drive.volatile},
        "file": {"driver": "file", "filename": drive.path},
    }


def removable(node: str, drive: Drive) -> dict[str, object]:
    """The same behind a node of its own, so that it can be taken away: QEMU saves no machine that has a VMDK open."""
    return {"driver": "raw", "node-name": node, "read-only": drive.read_only, "file": blockdev(f"{node}-file", drive)}


def nothing(node: str, drive: Drive) -> dict[str, object]:
    """What `removable` is reopened with then; the node {node}-none is to be there."""
    return {"driver": "raw", "node-name": node, "read-only": drive.read_only, "file": f"{node}-none"}


def _network(config: MachineConfig) -> list[str]:
    """The NIC.  A template's leads nowhere; the address of a clone's is its template's until the guest changes it."""
    network = config.network
    if network is None:
        return []
    if config.role in (Role.TEMPLATE, Role.GROWN):
        return ["-device", f"{_NIC},mac={TEMPLATE_MAC}"]
    forwards = [
        f"hostfwd={port.protocol}:{port.host_address}:{port.host_port}-:{port.guest_port}" for port in network.published
    ]
    mac = TEMPLATE_MAC if config.role is Role.CLONE else network.mac
    return [
        *("-netdev", ",".join(["user", "id=net", *netdev_words(network.addresses), *forwards])),
        *("-device", f"{_NIC},netdev=net,mac={mac}"),
    ]


def _boot(config: MachineConfig) -> list[str]:
    boot = config.boot
    firmware: Sequence[str] = ("-bios", str(boot.firmware)) if boot.firmware else ()
    if config.role in (Role.CLONE, Role.GROWN):  # the kernel is in the template's memory
        return [*firmware, "-incoming", "defer"]
    initramfs: Sequence[str] = ("-initrd", str(boot.initramfs)) if boot.initramfs else ()
    words = (*boot.arguments, *link_argument(config), *boot.start)
    return [*firmware, "-kernel", str(boot.kernel), *initramfs, "-append", " ".join(words)]


def _escaped(value: str) -> str:
    """A value inside one of QEMU's comma-separated options."""
    return value.replace(",", ",,")
