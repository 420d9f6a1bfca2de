"""One interface on its way to being usable: duplicates are asked for, a lease is got, routes are set.

It is ready when every address that the spec gives it may be used, and DHCP, if asked for, has brought one.
"""

import errno
from _socket import if_nametoindex

from tether.faults import TetherError
from tether.kernel.arrival import IPV6_ADDRESSES, Arrival
from tether.link.reactor import Reactor
from tether.net import duplicates
from tether.net.dhcplink import DhcpLink
from tether.net.lease import Lease
from tether.net.network import addressing, guard, routing
from tether.net.rtnetlink import carry_out
from tether.spec import Interface

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LEASE_SECONDS = 30.0  # five DISCOVERs; a switch that has just seen the port come up may swallow the first


class Settling:
    """See the module.  `done` is called once, with None or why the interface is not usable.

    `changed` is called at every change of the lease from then on.
    """

    def __init__(self, reactor: Reactor, interface: Interface, name: str, hostname: str, *,
                 changed: "Callable[[], None]", done: "Callable[[TetherError | None], None]") -> None:
        self.interface, self.name = interface, name
        self._reactor, self._changed, self._done = reactor, changed, done
        self._over = False
        self._unique: Arrival | None = None
        self.dhcp = DhcpLink(reactor, interface, name, hostname, self._leased) if interface.dhcp else None
        self._deadline = reactor.call_later(LEASE_SECONDS, self._is_late) if self.dhcp is not None else None

    def start(self) -> None:
        """Switches the interface on.  What goes wrong, now or later, is told by `done`: it can be unplugged."""
        try:
            self._start()
        except TetherError as error:
            self._finish(error)
        except OSError as error:
            self._finish(self._lost(error))

    def _start(self) -> None:
        guard(self.interface, self.name)
        carry_out(addressing(self.interface, self.name, if_nametoindex(self.name)))
        checked = tuple(cidr.partition("/")[0] for cidr in self.interface.addresses if ":" in cidr)
        if self.interface.check_duplicates and checked:
            self._unique = Arrival(
                self._reactor, IPV6_ADDRESSES, lambda: duplicates.usable(self.name, checked),
                arrived=lambda _usable: self._are_unique(), missed=self._finish,
                late=lambda: duplicates.overdue(self.name, checked), seconds=duplicates.SECONDS)
        else:
            self._route()
        if self.dhcp is not None:
            self.dhcp.start()
        self._reactor.soon(self._look)

    @property
    def addresses(self) -> tuple[str, ...]:
        """All its addresses, in CIDR notation."""
        lease = self.dhcp.lease if self.dhcp is not None else None
        return (*self.interface.addresses, *((lease.cidr,) if lease is not None else ()))

    def close(self) -> None:
        """Gives a lease back; nothing is called any more."""
        self._over = True
        if self._unique is not None:
            self._unique.cancel()
        if self._deadline is not None:
            self._deadline.cancel()
        if self.dhcp is not None:
            self.dhcp.close()

    def _are_unique(self) -> None:
        self._unique = None
        try:
            self._route()
        except TetherError as error:
            self._finish(error)
        except OSError as error:
            self._finish(self._lost(error))
        else:
            self._look()

    def _leased(self, _lease: Lease | None) -> None:
        self._changed()
        self._look()

    def _look(self) -> None:
        if self._unique is None and (self.dhcp is None or self.dhcp.lease is not None):
            self._finish(None)

    def _finish(self, error: TetherError | None) -> None:
        if not self._over:
            self._over = True
            if self._deadline is not None:
                self._deadline.cancel()
            self._done(error)

    def _route(self) -> None:
        """Sets the routes, when the addresses are usable: one may name an address as its source."""
        carry_out(routing(self.interface, self.name, if_nametoindex(self.name)))

    def _lost(self, error: OSError) -> TetherError:
        return TetherError(f"network interface {self.interface.mac}", error.strerror or str(error), error.errno or 0,
                           "was it unplugged?")

    def _is_late(self) -> None:
        self._finish(TetherError(f"DHCP on {self.name} ({self.interface.mac})",
                                 f"no server gave an address within {LEASE_SECONDS:g} s", errno.ETIMEDOUT,
                                 "is there a DHCP server on its network? An address in the spec needs none"))
