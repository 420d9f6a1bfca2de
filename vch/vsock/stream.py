"""One connection: bytes from the guest's memory into a socket, and from the socket into the guest's memory.

Credit (virtio 1.2, 5.10.6.3): each side says how large its buffer is and how much it has passed on from it, and the
other one sends no more than fits.  So what is kept here for a reader that is slow never exceeds BUFFER.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from enum import Enum, auto

from vch.vsock.packet import MODULUS, Header

BUFFER = 256 << 10  # bytes that the guest may have under way; its own kernel's default


class State(Enum):
    """How far a connection is."""

    OPEN = auto()
    FINISHING = auto()  # the guest sends no more; what it has sent is still to be passed on
    CLOSING = auto()  # the host's end is gone, and the guest has been told so


class Stream:
    """See the module.  `near` is one end of a socket pair, whose other end is the host's."""

    def __init__(self, guest_port: int, near: socket.socket) -> None:
        near.setblocking(False)
        self.guest_port, self.near = guest_port, near
        self.state = State.OPEN
        self.owes_credit = False
        self.unread = True  # there may be bytes of the host's end to read
        self._pending: deque[bytes] = deque()
        self._received = self._forwarded = self._told = 0  # bytes from the guest, modulo 2**32
        self._sent = self._peer_forwarded = self._peer_buffer = 0  # bytes to the guest, modulo 2**32

    # from the guest

    def hear(self, header: Header) -> None:
        """Takes in what every packet says of the guest's buffer."""
        self._peer_buffer, self._peer_forwarded = header.buffer, header.forwarded

    def receive(self, parts: Sequence[memoryview]) -> bool:
        """Passes bytes on, or keeps them; False if there are more than the guest has credit for."""
        length = sum(map(len, parts))
        if (self._received - self._forwarded) % MODULUS + length > BUFFER:
            return False
        self._received = (self._received + length) % MODULUS
        for part in parts:
            sent = 0 if self._pending else self._send(part)
            if sent < len(part):
                self._pending.append(bytes(part[sent:]))
        return True

    def flush(self) -> None:
        """Passes on what was kept."""
        while self._pending:
            data = self._pending.popleft()
            sent = self._send(memoryview(data))
            if sent < len(data):
                self._pending.appendleft(data[sent:])
                return

    @property
    def pending(self) -> bool:
        """Whether something is kept for the host's end."""
        return bool(self._pending)

    def _send(self, part: memoryview) -> int:
        try:
            count = self.near.send(part)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            count = len(part)  # nobody will read it; reading the socket says so too
        self._forwarded = (self._forwarded + count) % MODULUS
        return count

    # to the guest

    @property
    def credit(self) -> int:
        """How many bytes the guest has room for."""
        return max(0, self._peer_buffer - (self._sent - self._peer_forwarded) % MODULUS)

    def fill(self, parts: Sequence[memoryview]) -> int | None:
        """Reads into the guest's buffers; None if there is nothing now, 0 at the end."""
        try:
            count = self.near.recv_into(parts[0]) if len(parts) == 1 else self.near.recvmsg_into(parts)[0]
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return 0
        self._sent = (self._sent + count) % MODULUS
        return count

    # about the buffer here

    @property
    def credit_is_due(self) -> bool:
        """Whether the guest should hear soon that there is room again."""
        return (self._forwarded - self._told) % MODULUS >= BUFFER // 4

    def tell(self) -> int:
        """The count of bytes passed on, for a packet that goes out now."""
        self._told, self.owes_credit = self._forwarded, False
        return self._forwarded
