"""The network while the container runs: leases, interfaces that come and go, names that change."""

from _socket import if_nametoindex

from tether.faults import TetherError, fault_of, one_line
from tether.kernel import files
from tether.kernel.arrival import DEVICES, Arrival
from tether.kernel.console import say
from tether.kernel.uevents import DEADLINE_S
from tether.link.late_messages import InterfaceUp, SetNames
from tether.link.reactor import Reactor
from tether.net.names import hosts_text, resolv_text
from tether.net.neighbours import announce
from tether.net.network import addressing, find_interface, interface_by_mac, known_interface, not_found, routing
from tether.net.rename import merged, rewrite
from tether.net.rtnetlink import carry_out
from tether.net.rtundo import link_down, take_back
from tether.net.settling import Settling
from tether.spec import FIREWALL_OPEN, Interface, Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_S = 45.0  # longer than any interface may take to settle


class LiveNetwork:
    """See the module.  `names` is the folder of the files that name things."""

    def __init__(self, network: Network, reactor: Reactor, names: str) -> None:
        self._network, self._reactor, self._names = network, reactor, names
        self._interfaces: dict[str, Interface | Settling | Arrival] = {
            interface.mac.lower(): interface for interface in network.interfaces}
        self._written = {"hosts": hosts_text(network), "resolv.conf": resolv_text(network)}

    def settle(self, interfaces: tuple[Interface, ...]) -> None:
        """Brings up those whose addresses take time, and waits for them.  Raises TetherError for the first that fails.

        The loop goes on meanwhile, so whoever asks the agent something is answered.
        """
        outcomes: list[TetherError | None] = []
        for interface in interfaces:
            self._settling(interface, find_interface(interface.mac), outcomes.append).start()
        over = self._reactor.run_until(lambda: any(outcomes) or len(outcomes) == len(interfaces), WAIT_S)
        for error in outcomes:
            if error is not None:
                raise error
        if not over:
            raise TetherError("network", f"is not usable after {WAIT_S:g} s")

    def add(self, interface: Interface, done: "Callable[[InterfaceUp | TetherError], None]") -> None:
        """Waits for a NIC and brings it up; `done` gets what came of it.  Raises TetherError if it is there already."""
        mac = interface.mac.lower()
        if mac in self._interfaces:
            raise TetherError(f"interface {mac}", "is configured already", hint="remove it first")

        def arrived(name: str) -> None:
            try:
                settling = self._settling(interface, name, settled)
            except OSError as failure:
                missed(TetherError(f"network interface {mac}", failure.strerror or str(failure), failure.errno or 0,
                                   "was it unplugged?"))
            else:
                settling.start()

        def settled(error: TetherError | None) -> None:
            settling = self._interfaces[mac]
            assert isinstance(settling, Settling)
            if error is not None:
                self._interfaces.pop(mac)
                try:
                    settling.close()
                    self._leave(interface, settling.name)
                except TetherError as another:  # what went wrong first is what the caller wants to know
                    say(one_line(fault_of("leave network", another)))
                done(error)
                return
            try:
                if interface.announce:
                    announce(settling.name, settling.addresses)
                self._write_names()
            except OSError as failure:
                done(TetherError(f"interface {mac}", failure.strerror or str(failure), failure.errno or 0,
                                 "it is up, but nobody was told; is the container's hosts file too long?"))
                return
            done(InterfaceUp(name=settling.name, addresses=settling.addresses))

        def missed(error: TetherError) -> None:
            self._interfaces.pop(mac)
            done(error)

        self._interfaces[mac] = Arrival(
            self._reactor, DEVICES, lambda: known_interface(mac),
            arrived=arrived, missed=missed, late=lambda: not_found(mac), seconds=DEADLINE_S)

    def remove(self, mac: str) -> None:
        """Leaves a network: gives the lease back, switches the interface off.  Raises TetherError if there is none."""
        known = self._interfaces.pop(mac.lower(), None)
        if known is None:
            raise TetherError(f"interface {mac}", "is not configured")
        if isinstance(known, Arrival):
            known.cancel()
        elif isinstance(known, Settling):
            known.close()
        name = interface_by_mac(mac.lower())
        if name is not None and not isinstance(known, Arrival):
            self._leave(known if isinstance(known, Interface) else known.interface, name)
        self._network = self._network.but(interfaces=tuple(
            interface for interface in self._network.interfaces if interface.mac.lower() != mac.lower()))
        self._write_names()

    def rename(self, wanted: SetNames) -> None:
        """Other names: for hosts and resolv.conf."""
        self._network = self._network.but(
            aliases=wanted.aliases, hosts=wanted.hosts, nameservers=wanted.nameservers, search=wanted.search,
            resolver_options=wanted.resolver_options)
        self._write_names()

    def announce(self) -> None:
        """Tells the neighbours on every link which addresses are here, and asks whether leases are still good."""
        for mac, known in self._interfaces.items():
            name = interface_by_mac(mac)
            if name is None or isinstance(known, Arrival):
                continue
            if (known if isinstance(known, Interface) else known.interface).announce:
                announce(name, known.addresses)
            if isinstance(known, Settling) and known.dhcp is not None:
                known.dhcp.renew()

    def announce_leases(self) -> None:
        """Tells the neighbours of the addresses that are not in the spec."""
        for known in self._interfaces.values():
            if isinstance(known, Settling) and known.interface.announce and known.dhcp is not None:
                announce(known.name, known.addresses[len(known.interface.addresses):])

    def close(self) -> None:
        """Gives all leases back: the VM ends."""
        for known in self._interfaces.values():
            if isinstance(known, Settling):
                known.close()

    def _settling(self, interface: Interface, name: str,
                  done: "Callable[[TetherError | None], None]") -> Settling:
        made = Settling(self._reactor, interface, name, self._network.hostname, changed=self._write_names, done=done)
        self._interfaces[interface.mac.lower()] = made
        return made

    def _leave(self, interface: Interface, name: str) -> None:
        """Takes back what the spec gave it, and switches it off."""
        try:
            index = if_nametoindex(name)
            take_back([*addressing(interface, name, index), *routing(interface, name, index)])
            carry_out([link_down(index, name)])
            if interface.firewall != FIREWALL_OPEN:
                from tether.net.firewall import apply

                apply(interface.but(firewall=FIREWALL_OPEN), name)
        except OSError:
            return  # it has just been unplugged

    def _write_names(self) -> None:
        """Writes what has changed.

        What the container itself wrote into its hosts file stays, and so does a resolv.conf that it has made its own.
        """
        now = self._effective()
        for name, text in (("hosts", hosts_text(now)), ("resolv.conf", resolv_text(now))):
            if text == self._written[name]:
                continue
            path = f"{self._names}/{name}"
            current = files.read(path)
            if name == "hosts":
                rewrite(path, merged(current, self._written[name], text))
            elif current == self._written[name]:
                rewrite(path, text)
            self._written[name] = text

    def _effective(self) -> Network:
        """What the spec says, with what the leases bring."""
        settled = [known for known in self._interfaces.values() if isinstance(known, Settling)]
        leases = [known.dhcp.lease for known in settled if known.dhcp is not None and known.dhcp.lease is not None]
        interfaces = [known for known in self._interfaces.values() if isinstance(known, Interface)]
        interfaces += [known.interface.but(addresses=known.addresses) for known in settled]
        nameservers = self._network.nameservers or tuple(dict.fromkeys(
            address for lease in leases for address in lease.nameservers))
        search = self._network.search or tuple(dict.fromkeys(name for lease in leases for name in lease.search))
        return self._network.but(interfaces=tuple(interfaces), nameservers=nameservers, search=search)
