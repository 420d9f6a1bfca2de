"""virtio-serial ports: named character devices with real back pressure (the default under QEMU).

A port has one opener at a time and no half close.  While the host end is not connected, poll(2) reports POLLHUP, reads
return 0 bytes and writes EAGAIN; the same file descriptor works again when the host is back (Linux, virtio_console.c).
"""

import os

from tether.link.errors import TransportError
from tether.link.limits import PORT
from tether.link.transport import Transport

_PIECE = 32 * 1024  # what the driver takes of one write (virtio_console.c, port_fops_write)
_CLASS = "/sys/class/virtio-ports"


def open_virtio_port(name: str, *, sysfs: str = _CLASS, devices: str = "/dev") -> Transport:
    """Opens the port that the host has called `name`.  Raises TransportError."""
    ports = _ports(sysfs)
    device = ports.get(name)
    if device is None:
        known = ", ".join(sorted(ports)) or "none"
        raise TransportError(
            "find virtio port", name, f"the ports are: {known}", "give QEMU -device virtserialport,name=" + name
        )
    path = f"{devices}/{device}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        hint = "another process has it open" if isinstance(error, BlockingIOError) or error.errno == 16 else ""
        raise TransportError("open virtio port", path, error.strerror or str(error), hint) from None
    return Transport(fd, f"virtio port {name}", permanent=True, limits=PORT, piece=_PIECE)


def _ports(sysfs: str) -> dict[str, str]:
    """Device name of each named port."""
    found = {}
    try:
        devices = sorted(os.listdir(sysfs))
    except FileNotFoundError:
        return {}
    for device in devices:
        try:
            with open(f"{sysfs}/{device}/name", "rb") as file:
                found[file.read().strip().decode("utf-8", "replace")] = device
        except FileNotFoundError:
            continue  # a port without a name
    return found
