"""The boot medium: an ISO that brings what a VM is to run, as a CD-ROM or as a disk.

It is found by its volume label, which imagebuild makes of its content, so that no other medium is taken for it.  Image
layers are files on it; a loop device each makes block devices of them (loop(4), linux/loop.h).
"""

import errno
import fcntl
import os
import struct

from tether.faults import TetherError
from tether.kernel import files
from tether.kernel.modules import load_on_demand
from tether.kernel.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, mount
from tether.kernel.uevents import wait_for
from tether.rootfs.inside import open_inside

MOUNTED = "/m"
DRIVERS = ("ata_piix", "ahci", "sr_mod", "isofs", "loop")
_BLOCK = "/sys/block"
_FILESYSTEM = "iso9660"
_DESCRIPTOR_AT, _DESCRIPTOR_BYTES = 32768, 2048  # the primary volume descriptor (ECMA-119, 8.4)
_PRIMARY = b"\x01CD001"
_LABEL = slice(40, 72)
_NOT_MEDIA = ("loop", "ram", "dm-", "zram")
# An empty drive, or a disk that is on its way in or out.
_NO_MEDIUM = (errno.ENOMEDIUM, errno.ENXIO, errno.EIO, errno.ENOENT)

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_READ_ONLY = 1
# struct loop_config: fd, block size (0: the default), struct loop_info64 of which only the flags are set, reserved.
_LOOP_CONFIG = struct.Struct("=II5QIIII64s64s32s2Q8Q")
_TRIES = 8  # another may take the device between the question which is free and the taking


def mount_medium(label: str) -> None:
    """Mounts the ISO of this label, awaited.  Raises TetherError that says which media there are instead."""
    load_on_demand(*DRIVERS)
    node = wait_for(f"ISO with label {label}", lambda: _node(label), _inventory)
    os.mkdir(MOUNTED)
    try:
        mount(node, MOUNTED, _FILESYSTEM, MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except OSError as error:
        hint = "the kernel has no iso9660" if error.errno == errno.ENODEV else "the medium is damaged"
        raise TetherError(f"ISO on {node}", os.strerror(error.errno or 0), error.errno or 0, hint) from error


def open_on_medium(path: str) -> int:
    """A descriptor of a file on the mounted medium.  Raises TetherError."""
    try:
        folder = os.open(MOUNTED, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise TetherError(f"file {path} of the boot medium", "this VM has not started from an ISO with a spec",
                          errno.ENOENT, "name the disk by its serial number or SCSI address") from error
    try:
        return open_inside(folder, path.encode(), os.O_RDONLY)
    except OSError as error:
        raise TetherError(f"file {path} of the boot medium", os.strerror(error.errno or 0), error.errno or 0,
                          "the spec names a file that is not on the ISO") from error
    finally:
        os.close(folder)


def read_medium(path: str, limit: int) -> bytes:
    """The content of a file on the mounted medium, of at most `limit` bytes.  Raises TetherError."""
    handle = open_on_medium(path)
    try:
        content = os.read(handle, limit + 1)
    finally:
        os.close(handle)
    if len(content) > limit:
        raise TetherError(f"file {path} of the boot medium", f"it has more than {limit} bytes", errno.EFBIG)
    return content


def attach_file(path: str) -> str:
    """The node of a read-only block device made of a file on the medium.  Raises TetherError."""
    handle = open_on_medium(path)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            return _attach(handle, control)
        finally:
            os.close(control)
    except OSError as error:
        hint = "the kernel has no loop devices" if error.errno in (errno.ENOENT, errno.ENODEV) else ""
        raise TetherError(f"loop device for {path}", os.strerror(error.errno or 0), error.errno or 0, hint) from error
    finally:
        os.close(handle)  # the loop device keeps its own reference


def _attach(handle: int, control: int) -> str:
    config = _LOOP_CONFIG.pack(handle, 0, *[0] * 5, 0, 0, 0, _LO_FLAGS_READ_ONLY, b"", b"", b"", *[0] * 10)
    for _ in range(_TRIES):
        node = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
        device = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, config)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        else:
            return node
        finally:
            os.close(device)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def label_of(descriptor: bytes) -> str | None:
    """The label in a primary volume descriptor; None for anything else."""
    return descriptor[_LABEL].decode("ascii", "replace").rstrip() if descriptor.startswith(_PRIMARY) else None


def _node(label: str) -> str | None:
    return next((f"/dev/{name}" for name, found in _media() if found == label), None)


def _media() -> list[tuple[str, str | None]]:
    """Every drive and disk, with the label of the ISO in it."""
    found = []
    for name in sorted(os.listdir(_BLOCK)):
        if name.startswith(_NOT_MEDIA) or not os.path.exists(f"/dev/{name}"):
            continue
        try:
            handle = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                found.append((name, label_of(os.pread(handle, _DESCRIPTOR_BYTES, _DESCRIPTOR_AT))))
            finally:
                os.close(handle)
        except OSError as error:
            if error.errno not in _NO_MEDIUM:
                raise
            found.append((name, None))
    return found


def _inventory() -> str:
    shown = ", ".join(f"{name} ({label or 'no ISO'})" for name, label in _media())
    if shown:
        return f"this VM has {shown}"
    drivers = "ata_piix, ahci, pvscsi" if not files.read_if_there("/proc/scsi/scsi") else "sr_mod, sd_mod"
    return f"this VM has no drive at all: is the controller's driver in the kernel ({drivers})?"
