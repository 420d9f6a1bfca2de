"""What no two VMs may share: randomness and the time.

Clones of one template wake up with the same state of the random number generator, so entropy must be fed *and* the
generator reseeded from it before anything draws a number (random(4); linux/random.h).
"""

import fcntl
import os
import struct
import time

from tether.faults import TetherError
from tether.spec import Identity

_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
MIN_ENTROPY = 32  # bytes: one full key of the kernel's generator
MAX_ENTROPY = 4096


def take_identity(identity: Identity) -> None:
    """Feeds the entropy, reseeds, sets the clock."""
    if not MIN_ENTROPY <= len(identity.entropy) <= MAX_ENTROPY:
        raise TetherError("spec.identity.entropy", f"{len(identity.entropy)} bytes",
                          hint=f"send {MIN_ENTROPY} to {MAX_ENTROPY} bytes from a good source")
    if identity.clock_ns <= 0:
        raise TetherError("spec.identity.clock_ns", f"{identity.clock_ns} is not a time of this era",
                          hint="send CLOCK_REALTIME in nanoseconds")
    device = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        bits = 8 * len(identity.entropy)
        fcntl.ioctl(device, _RNDADDENTROPY, struct.pack("ii", bits, len(identity.entropy)) + identity.entropy)
        fcntl.ioctl(device, _RNDRESEEDCRNG)
    finally:
        os.close(device)
    time.clock_settime_ns(time.CLOCK_REALTIME, identity.clock_ns)
