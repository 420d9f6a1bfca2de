"""Serial lines: a 16550 UART under QEMU, vSphere's serial port (ioctl_tty(2), Linux serial_core.c).

Nothing holds a sender back: RTS/CTS are not wired to anything under a hypervisor, and a reader that is late loses bytes
in silence once the kernel's buffer is full.  So the limits are small (see tether.link.limits.UART).  While the host's
end is away, writes succeed and vanish; the endpoints notice by themselves and resume.
"""

import fcntl
import os
import struct

from tether.link.errors import TransportError
from tether.link.limits import UART
from tether.link.transport import Transport

# Of asm-generic/ioctls.h and termbits.h; the module termios would be one more file in every boot image.
_TCSETS, _TCFLSH, _TCIFLUSH = 0x5402, 0x540B, 0
_CS8, _CREAD, _CLOCAL = 0o60, 0o200, 0o4000
_B115200 = 0o10002  # an emulated UART ignores it, a real one gets the most that every 16550 can do
_TERMIOS = struct.Struct("IIIIB19s")  # input, output, control and local modes; line discipline; control characters
# The kernel wakes a reader for each filling of the chip's 16 bytes; to run PID 1's loop for each costs more than the
# line.  At its top speed 5 ms bring half a frame.
_PACE = 0.005
_VMIN = 6  # index of the control character that says how many bytes a read waits for


def open_uart(name: str, *, devices: str = "/dev") -> Transport:
    """Opens the serial line `name` ("ttyS1") for bytes of any value.  Raises TransportError."""
    path = f"{devices}/{name}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        hint = f"is there a serial port {name} in this VM?"
        raise TransportError("open serial line", path, error.strerror or str(error), hint) from None
    try:
        make_raw(fd)
    except OSError as error:
        os.close(fd)
        # Linux has a device node for each UART that could be there; one that is not answers with EIO.
        hint = "there is no UART behind this name"
        raise TransportError("open serial line", path, error.strerror or str(error), hint) from None
    return Transport(fd, f"serial line {name}", permanent=True, limits=UART, pace=_PACE)


def make_raw(fd: int) -> None:
    """Eight bits, no parity, nothing interpreted, nobody hung up on; what an earlier owner left unread is dropped."""
    characters = bytearray(19)
    characters[_VMIN] = 1
    fcntl.ioctl(fd, _TCSETS, _TERMIOS.pack(0, 0, _CS8 | _CREAD | _CLOCAL | _B115200, 0, 0, bytes(characters)))
    fcntl.ioctl(fd, _TCFLSH, _TCIFLUSH)
