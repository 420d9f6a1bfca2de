"""How much of everything one end of the link takes in (docs/protocol.md, "Limits").

An endpoint tells its limits in its hello and the peer stays within them; they differ by transport, because a UART
without flow control loses what its reader does not fetch in time and a virtio-serial port does not.
"""

from tether.link.record import Record

KIB = 1024
MIB = 1024 * KIB

LEAST_PAYLOAD = 64  # a peer that takes less would make every frame mostly header
MOST_PAYLOAD = MIB
MOST_STREAMS = 1024  # positions of so many streams still fit one opening frame


class Limits(Record):
    """Sizes in bytes, except `streams`.

    payload  longest payload of one frame; also how long control can be stuck behind bulk data
    window   what one stream may have sent that this end's program has not read yet
    ring     what this end keeps of one stream until the peer has acknowledged it
    streams  streams that the peer may have open towards this end at a time
    message  longest control message
    flight   what all streams together may have sent that this end has not acknowledged yet; 0 = as much as the windows
             allow, for transports that hold the sender back by themselves
    ends_suffice  a long payload's CRC need cover its ends only; for transports that lose bytes but change none

    So one link costs at most streams * (window + ring) + 4 * message + 4 * payload bytes, and only while a peer or a
    stalled reader makes it so.
    """

    payload: int = 512 * KIB
    window: int = MIB
    ring: int = MIB
    streams: int = 256
    message: int = MIB
    flight: int = 0
    ends_suffice: bool = False

    @property
    def control_window(self) -> int:
        """Window and ring of the control stream: two whole messages with their length prefixes."""
        return 2 * (self.message + 4)


PORT = Limits(ends_suffice=True)  # virtio-serial, vsock, Unix and TCP sockets

# A 16550 has no flow control.  Linux's tty layer holds 64 KiB for sure (about 1.3 MiB in practice) for a reader that is
# late, then drops bytes in silence, so all streams together stay below that.  Small frames: at 10 kB/s one of 2 KiB
# takes 0.2 s, and that is how long a signal waits behind bulk data; under a hypervisor the line is ten times as fast.
UART = Limits(payload=2 * KIB, window=32 * KIB, ring=256 * KIB, streams=64, flight=32 * KIB)
