"""The DHCP client of one interface: sockets and timers around the state machine (tether/net/dhcp.py).

Before there is an address, packets go and come through a packet socket (packet(7)): the kernel would send them from
an address of another interface, and hand over none that are sent to us before we are who they are for.  It is closed
as soon as there is a lease, so that it does not see the container's traffic.  A lease is renewed over UDP.
"""

import errno
import os
from _socket import (
    AF_INET,
    AF_PACKET,
    SO_BINDTODEVICE,
    SO_BROADCAST,
    SO_REUSEADDR,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOL_SOCKET,
    if_nametoindex,
    socket,
)
from time import monotonic

from tether.faults import TetherError
from tether.kernel.console import say
from tether.link.reactor import Reactor, Timer, Watch
from tether.net.dhcp import NEVER, Client, Configure, Lose, Send
from tether.net.dhcpwire import (
    CLIENT_PORT,
    EVERYBODY,
    SERVER_PORT,
    read_packet,
    read_reply,
    write_packet,
    write_request,
)
from tether.net.lease import Lease, requests_for
from tether.net.rtnetlink import Request, carry_out
from tether.net.rtundo import take_back
from tether.spec import Interface

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.net.dhcp import Action

_ETH_P_IP = 0x0800  # linux/if_ether.h
_BROADCAST_MAC = b"\xff" * 6
_PACKET_BYTES = 65536
_LATE_S = 0.001
_MOST_PACKETS = 32  # taken in one go, so that a flood leaves room for others
# A packet that cannot be sent now is a packet lost: it is sent again when its time comes.
_LOST = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOBUFS, errno.EAGAIN, errno.EPERM)
_NO_INTERFACE = (errno.ENODEV, errno.ENXIO)


class DhcpLink:
    """Gets and keeps a lease for `interface`, which the kernel calls `name`.

    `changed` is called whenever there is another lease, or (None) none any more; addresses and routes are set by then.
    """

    def __init__(self, reactor: Reactor, interface: Interface, name: str, hostname: str,
                 changed: "Callable[[Lease | None], None]") -> None:
        self._reactor, self._interface, self._name, self._changed = reactor, interface, name, changed
        self._index = if_nametoindex(name)
        mac = bytes.fromhex(interface.mac.replace(":", ""))
        self._client = Client(mac, hostname, monotonic(), lambda: int.from_bytes(os.urandom(4), "big"))
        self._applied: list[Request] = []
        self._lease: Lease | None = None
        self._timer: Timer | None = None
        self._packets: tuple[socket, Watch] | None = None
        self._datagrams: tuple[socket, Watch] | None = None
        self._closed = False

    @property
    def lease(self) -> Lease | None:
        """The lease that is in use."""
        return self._lease

    def start(self) -> None:
        """Begins to look for a server."""
        self._tick()

    def renew(self) -> None:
        """Asks now whether the lease is still good."""
        if not self._closed:
            self._guarded(self._client.renew(monotonic()))
            self._tick()

    def close(self) -> None:
        """Gives the lease back to the server and its address to the kernel."""
        if self._closed:
            return
        self._guarded(self._client.release())
        if self._timer is not None:
            self._timer.cancel()
        if not self._closed:  # it may just have turned out to be gone
            self._closed = True
            self._listen()
            self._forget()

    # what happens

    def _tick(self) -> None:
        if self._closed:
            return
        self._guarded(self._client.tick(monotonic()))
        if self._timer is not None:
            self._timer.cancel()
        if self._client.due != NEVER:
            # A little late rather than early: a tick before its time does nothing.
            self._timer = self._reactor.call_later(max(0.0, self._client.due - monotonic()) + _LATE_S, self._tick)

    def _arrived(self, packet: bytes) -> None:
        try:
            message = read_reply(packet)
        except ValueError:
            return  # anybody can send anything
        self._guarded(self._client.take(message, monotonic()))
        self._tick()

    # what is done

    def _guarded(self, actions: "list[Action]") -> None:
        """Does them.  What goes wrong is a matter of this interface, and PID 1 goes on: the client asks again."""
        try:
            self._do(actions)
        except OSError as error:
            if error.errno in _NO_INTERFACE:
                self._interface_is_gone()
            else:
                say(f"tether: DHCP on {self._name}: {error}")
        except TetherError as error:
            say(f"tether: DHCP on {self._name}: {error}")

    def _do(self, actions: "list[Action]") -> None:
        self._listen()
        for action in actions:
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, Configure):
                self._configure(action.lease)
            else:
                assert isinstance(action, Lose)
                say(f"tether: DHCP on {self._name}: {action.reason}; looking for another")
                self._forget()
                self._changed(None)

    def _configure(self, lease: Lease) -> None:
        wanted = requests_for(lease, self._index, self._name, self._interface)
        if wanted != self._applied:
            self._forget()
            for request in wanted:
                self._try(request)
        before, self._lease = self._lease, lease
        if before != lease:
            self._changed(lease)

    def _try(self, request: Request) -> None:
        """Carries out what a server told; what the kernel refuses of it is said, and the rest still holds."""
        try:
            carry_out([request])
            self._applied.append(request)
        except TetherError as error:
            say(f"tether: DHCP on {self._name}: {error}")

    def _forget(self) -> None:
        applied, self._applied, self._lease = self._applied, [], None
        take_back(applied)

    def _send(self, action: Send) -> None:
        payload = write_request(action.message)
        try:
            if self._packets is not None:
                target = (self._name, _ETH_P_IP, 0, 0, _BROADCAST_MAC)
                self._packets[0].sendto(write_packet(payload), target)
            elif self._datagrams is not None:
                self._datagrams[0].sendto(payload, (action.server or EVERYBODY, SERVER_PORT))
        except OSError as error:
            if error.errno not in _LOST:
                raise

    def _interface_is_gone(self) -> None:
        """It was unplugged: nothing is left to configure."""
        self._closed, self._applied, self._lease = True, [], None
        if self._timer is not None:
            self._timer.cancel()
        self._listen()
        self._changed(None)

    # sockets

    def _listen(self) -> None:
        """Opens the socket that the state asks for, and closes the other."""
        leased = self._client.lease is not None
        if self._packets is not None and (leased or self._closed):
            self._shut(self._packets)
            self._packets = None
        if self._datagrams is not None and (not leased or self._closed):
            self._shut(self._datagrams)
            self._datagrams = None
        if self._closed:
            return
        if leased and self._datagrams is None:
            self._datagrams = self._watched(self._open_datagrams(), lambda data: data)
        elif not leased and self._packets is None:
            packets = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, _network_order(_ETH_P_IP))
            packets.bind((self._name, _ETH_P_IP))
            self._packets = self._watched(packets, read_packet)

    def _open_datagrams(self) -> socket:
        opened = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK)
        for option in (SO_REUSEADDR, SO_BROADCAST):
            opened.setsockopt(SOL_SOCKET, option, 1)
        opened.setsockopt(SOL_SOCKET, SO_BINDTODEVICE, self._name.encode())
        opened.bind(("", CLIENT_PORT))
        return opened

    def _watched(self, opened: socket, payload: "Callable[[bytes], bytes | None]") -> tuple[socket, Watch]:
        def ready(_conditions: int) -> None:
            for _ in range(_MOST_PACKETS):
                try:
                    data = payload(opened.recv(_PACKET_BYTES))
                except BlockingIOError:
                    return
                except OSError as error:  # an ICMP error, or the interface is down: no packet
                    if error.errno == errno.EBADF:  # closed by what the last packet said
                        return
                    continue
                if data is not None:
                    self._arrived(data)

        return opened, self._reactor.watch(opened.fileno(), ready)

    def _shut(self, opened: tuple[socket, Watch]) -> None:
        opened[1].close()
        opened[0].close()


def _network_order(number: int) -> int:
    return int.from_bytes(number.to_bytes(2, "big"), "little")
