"""dm-verity: a disk of which nothing can be read but what has the right hash.

The kernel checks each block against a tree of hashes when it is read, and the top of the tree against the root hash,
which came with the spec.  A block that fails gives EIO to whoever reads it.  Set up by device-mapper's ioctls
(linux/dm-ioctl.h; kernel documentation, "dm-verity"): make a device, load a table of one target, resume.  Imported
late: only a spec with root hashes needs it.
"""

import errno
import fcntl
import os
import struct

from tether.faults import TetherError
from tether.kernel import files
from tether.kernel.modules import load_on_demand
from tether.kernel.uevents import wait_for
from tether.spec import Verity

CONTROL = "/dev/mapper/control"
BLOCK = 4096
SECTOR = 512
_DIGITS = 64  # of a SHA-256 in hexadecimal
_MODULE = "dm_verity"

# struct dm_ioctl: version, size of all, offset of what follows, targets, open count, flags, event, padding, device,
# name, UUID, 7 bytes of filling.
_HEADER = struct.Struct("=3IIIIiIIIQ128s129s7x")
_TARGET = struct.Struct("=QQiI16s")  # struct dm_target_spec: start, length in sectors, status, next, type
_VERSION = (4, 0, 0)
_READ_ONLY = 1  # DM_READONLY_FLAG
_CREATE, _REMOVE, _RESUME, _LOAD = ((3 << 30) | (_HEADER.size << 16) | (0xFD << 8) | number for number in (3, 4, 6, 9))


def open_verified(node: str, verity: Verity, name: str) -> str:
    """The device node of what is verified on the disk `node`; `name` is its own.  Raises TetherError."""
    table = verity_table(node, verity)
    load_on_demand(_MODULE)
    try:
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise TetherError("dm-verity", "this kernel has no device mapper", errno.ENODEV,
                          "choose a kernel that has, or do without --verity") from error
    try:
        _ask(control, _CREATE, name)
        try:
            _ask(control, _LOAD, name, _target(verity.data_size // SECTOR, table))
            device = _ask(control, _RESUME, name)
        except OSError as error:
            _ask(control, _REMOVE, name)
            number = error.errno or 0
            raise TetherError(f"dm-verity on {node}", os.strerror(number), number,
                              "is the disk shorter than its spec says, or has the kernel no dm-verity?") from error
    finally:
        os.close(control)
    return wait_for(f"verified disk of {node}", lambda: _node(device), lambda: "")


def verity_table(node: str, verity: Verity) -> str:
    """The parameters of the target.  Raises TetherError for a spec that cannot be."""
    digits = verity.root_hash.lower()
    if len(digits) != _DIGITS or digits.strip("0123456789abcdef"):
        raise TetherError("spec.root.layers.verity.root_hash", f"{verity.root_hash!r} is no SHA-256 in hexadecimal")
    if verity.data_size <= 0 or verity.data_size % BLOCK:
        raise TetherError("spec.root.layers.verity.data_size", f"{verity.data_size} bytes are not whole blocks",
                          hint=f"it is a multiple of {BLOCK}")
    blocks = verity.data_size // BLOCK
    first_hash_block = blocks + 1  # behind the superblock
    return f"1 {node} {node} {BLOCK} {BLOCK} {blocks} {first_hash_block} sha256 {digits} -"


def _target(sectors: int, parameters: str) -> bytes:
    """The one target of the table, padded as the kernel wants it."""
    text = parameters.encode() + b"\0"
    text += bytes(-len(text) % 8)
    return _TARGET.pack(0, sectors, 0, 0, b"verity") + text


def _ask(control: int, request: int, name: str, target: bytes = b"") -> int:
    """One ioctl; gives the number of the device.  Raises OSError."""
    size = _HEADER.size + len(target)
    head = _HEADER.pack(*_VERSION, size, _HEADER.size, 1 if target else 0, 0, _READ_ONLY, 0, 0, 0, name.encode(), b"")
    data = bytearray(head + target)
    fcntl.ioctl(control, request, data)
    device: int = _HEADER.unpack_from(data)[10]
    return device


def _node(device: int) -> str | None:
    """The node of a device by its number, as soon as there is one."""
    found = files.read_if_there(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/uevent")
    for line in (found or b"").decode().splitlines():
        key, _, value = line.partition("=")
        if key == "DEVNAME" and os.path.exists(f"/dev/{value}"):
            return f"/dev/{value}"
    return None
