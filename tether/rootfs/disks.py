"""Finding disks by what they say of themselves, never by order of appearance.

/sys/block/NAME/serial is virtio-blk's serial number, /sys/block/NAME/device/vpd_pg80 a SCSI disk's ("Unit Serial
Number" page, SPC-4 7.8.17), and /sys/block/NAME/device links to the SCSI address H:C:T:L.
"""

import errno
import os

from tether.faults import TetherError
from tether.kernel import files
from tether.kernel.uevents import wait_for
from tether.link.record import Record
from tether.spec import Disk

_BLOCK = "/sys/block"
_VPD_HEADER = 4  # bytes: type, page code, length
_PULLED = (errno.ENOENT, errno.ENODEV, errno.ENXIO)  # what /sys says of a device that goes away just now
_NO_DISKS = ("loop", "ram", "dm-", "zram", "sr")  # block devices that are never meant by a spec


class BlockDevice(Record):
    """A disk as /sys shows it."""

    name: str
    serial: str = ""
    scsi: str = ""


def find_disk(disk: Disk) -> str:
    """The device node of `disk`, awaited.  Raises TetherError that says which disks there are instead."""
    names = (disk.serial, disk.scsi, disk.file, disk.label)
    if names.count("") != len(names) - 1 or ((disk.file or disk.label) and disk.partition):
        raise TetherError("disk", "the spec must name one of serial, SCSI address (each with or without a partition), "
                                  "file and label")
    if disk.file:
        from tether.sources.medium import attach_file  # late: only a VM that brings its image has any

        return attach_file(disk.file)
    return wait_for(describe(disk), lambda: _node(disk), lambda: inventory(block_devices()))


def describe(disk: Disk) -> str:
    """A disk in words."""
    if disk.label:
        return f"ext4 with label {disk.label}"
    name = f"disk with serial {disk.serial}" if disk.serial else f"disk at SCSI address {disk.scsi}"
    return f"partition {disk.partition} of the {name}" if disk.partition else name


def matching(devices: list[BlockDevice], disk: Disk) -> list[BlockDevice]:
    """The devices that the spec may mean."""
    if disk.serial:
        return [device for device in devices if device.serial == disk.serial]
    return [device for device in devices if device.scsi == disk.scsi]


def partition_name(name: str, number: int) -> str:
    """How the kernel names a partition (block/partitions/core.c): sda1, but nvme0n1p1."""
    if not number:
        return name
    return f"{name}p{number}" if name[-1:].isdigit() else f"{name}{number}"


def serial_of_vpd(page: bytes) -> str:
    """The serial number in VPD page 0x80."""
    length = int.from_bytes(page[2:_VPD_HEADER], "big")
    return page[_VPD_HEADER:_VPD_HEADER + length].decode("ascii", "replace").strip(" \0")


def inventory(devices: list[BlockDevice]) -> str:
    """What is there, for the message that says what is not."""
    if not devices:
        return "this VM has no disks at all: is the controller's driver in the kernel?"
    shown = (f"{device.name} (serial {device.serial or 'none'}, SCSI {device.scsi or 'none'})" for device in devices)
    return "this VM has " + ", ".join(shown)


def block_devices() -> list[BlockDevice]:
    """All disks that are there now.  One that is pulled while it is looked at is not."""
    found = []
    for name in sorted(os.listdir(_BLOCK)):
        if not name.startswith(_NO_DISKS):
            try:
                found.append(_device(name))
            except OSError as error:
                if error.errno not in _PULLED:
                    raise
    return found


def _device(name: str) -> BlockDevice:
    serial = files.read_if_there(f"{_BLOCK}/{name}/serial")
    page = None if serial else files.read_if_there(f"{_BLOCK}/{name}/device/vpd_pg80")
    address = os.path.basename(os.readlink(f"{_BLOCK}/{name}/device"))
    return BlockDevice(
        name=name,
        serial=serial.decode("ascii", "replace").strip() if serial else serial_of_vpd(page) if page else "",
        scsi=address if address.count(":") == 3 else "",
    )


def _node(disk: Disk) -> str | None:
    if disk.label:
        return _labelled(disk)
    found = matching(block_devices(), disk)
    if len(found) > 1:
        raise TetherError(describe(disk), "there are several: " + ", ".join(device.name for device in found),
                          hint="give each disk its own serial number")
    if not found:
        return None
    name = partition_name(found[0].name, disk.partition)
    return f"/dev/{name}" if opens(f"/dev/{name}") else None


def opens(node: str) -> bool:
    """Whether there is a device behind a node.

    The kernel makes the node first and the device a moment later (add_partition() in block/partitions/core.c); until
    then open(2) says ENXIO.  An event follows when it is done.
    """
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENXIO)  # of anything else the mount says what it is
    return True


def _partitions(name: str) -> list[str]:
    try:
        return sorted(part for part in os.listdir(f"{_BLOCK}/{name}") if part.startswith(name))
    except FileNotFoundError:
        return []  # it has just been pulled


def _labelled(disk: Disk) -> str | None:
    from tether.rootfs.labels import labelled  # late: few specs name a label

    names = [device.name for device in block_devices()]
    parts = [part for name in names for part in _partitions(name)]
    found = labelled([*names, *parts], disk.label)
    if len(found) > 1:
        raise TetherError(describe(disk), "there are several: " + ", ".join(found), hint="give each its own label")
    return f"/dev/{found[0]}" if found else None
