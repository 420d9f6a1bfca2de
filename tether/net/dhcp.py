"""A DHCPv4 client as a state machine (RFC 2131, 4.4): no sockets, no clock, no random numbers of its own.

    Looking --offer--> Asking --ACK--> Bound --T1--> Renewing --T2--> Rebinding --end of the lease--> Looking
       ^                  | NAK, or nobody answers       | NAK             | NAK
       +------------------+------------------------------+-----------------+

Whoever owns a `Client` calls `tick` when `due` has come and `take` when a message has, and does what they give back:
`Send`, `Configure`, `Lose`.  Times are seconds of one clock that never goes back.
"""

from _socket import inet_aton

from tether.link.record import Record
from tether.net import dhcpwire
from tether.net.dhcpwire import ACK, DISCOVER, FOREVER, NAK, NO_ADDRESS, OFFER, RELEASE, REQUEST, Message
from tether.net.lease import Lease, read_lease

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_PAUSE_S = 1.0  # doubled each time; RFC 2131 suggests 4 s, but a container's start waits for this
LONGEST_PAUSE_S = 64.0
REQUESTS = 4  # for one offer; then another server may have a better one
JITTER_S = 0.5  # either way, so that a hundred machines that start together do not ask together
LEAST_RENEWAL_PAUSE_S = 60.0  # RFC 2131, 4.4.5
NAK_PAUSE_S = 5.0  # a server that refuses what it has just offered is not asked again at once
NEVER = float("inf")


class Looking(Record):
    """No address: DISCOVER is broadcast until somebody offers one."""

    tries: int = 0


class Asking(Record):
    """An offer was taken: REQUEST is broadcast until the server that made it answers."""

    offer: Lease
    tries: int
    asked: float


class Bound(Record):
    """There is a lease, and nothing to do before T1.  Its times count from `since`."""

    lease: Lease
    since: float


class Renewing(Record):
    """T1 has passed: the server is asked, directly, to go on.  `asked`: when it was, last."""

    lease: Lease
    since: float
    asked: float


class Rebinding(Record):
    """T2 has passed: any server is asked."""

    lease: Lease
    since: float
    asked: float


class Send(Record):
    """Send `message`: broadcast, without an address (`server` ""), or from the address that it names to `server`."""

    message: Message
    server: str = ""


class Configure(Record):
    """Use this lease, in place of the one before."""

    lease: Lease


class Lose(Record):
    """The lease is over: its address must not be used any more."""

    reason: str


if TYPE_CHECKING:
    State = Looking | Asking | Bound | Renewing | Rebinding
    Action = Send | Configure | Lose


class Client:
    """See the module.  `draw` gives random whole numbers of 32 bits."""

    def __init__(self, mac: bytes, hostname: str, now: float, draw: "Callable[[], int]") -> None:
        self.state: State = Looking()
        self.due = now
        self._mac, self._hostname, self._draw = mac, hostname, draw
        self._xid = draw()
        self._began = now  # of this exchange, for `secs`

    @property
    def lease(self) -> Lease | None:
        """The lease that is in force."""
        return self.state.lease if isinstance(self.state, (Bound, Renewing, Rebinding)) else None

    def tick(self, now: float) -> "list[Action]":
        """What is to be done because time has passed.  Before `due` that is nothing."""
        if now < self.due:
            return []
        state = self.state
        if isinstance(state, Looking):
            return self._look(now, state.tries)
        if isinstance(state, Asking):
            return self._look(now, 0) if state.tries >= REQUESTS else self._ask(now, state.offer, state.tries)
        if now >= state.since + state.lease.seconds:
            return [Lose(reason="the lease has ended and no server renewed it"), *self._restart(now, 0)]
        if now >= state.since + state.lease.rebind:
            return self._go_on(now, state, "")
        return self._go_on(now, state, state.lease.server)

    def take(self, message: Message, now: float) -> "list[Action]":
        """What is to be done because a server has said something.  What is not for us, or no use, is passed over."""
        if message.xid != self._xid or message.mac != self._mac:
            return []
        if message.kind == NAK:
            return self._refused(message, now)
        try:
            lease = read_lease(message)
        except ValueError:
            return []
        state = self.state
        if message.kind == OFFER and isinstance(state, Looking) and state.tries:
            return self._ask(now, lease, 0)
        if message.kind == ACK and isinstance(state, (Asking, Renewing, Rebinding)) and self._is_of_ours(lease):
            self._bind(lease, state.asked)
            return [Configure(lease=lease)]
        return []

    def renew(self, now: float) -> "list[Action]":
        """Asks now whether the lease is still good: after a suspend, or on another host."""
        state = self.state
        return self._go_on(now, state, "") if isinstance(state, (Bound, Renewing, Rebinding)) else []

    def release(self) -> "list[Action]":
        """Gives the address back; the client is of no use afterwards."""
        lease, self.due = self.lease, NEVER
        if lease is None:
            return []
        others = {dhcpwire.SERVER_IDENTIFIER: inet_aton(lease.server)}
        message = Message(xid=self._draw(), mac=self._mac, client=lease.address,
                          options=dhcpwire.options_for(RELEASE, self._mac, "", others))
        return [Send(message=message, server=lease.server)]

    # the states

    def _restart(self, now: float, pause: float) -> "list[Action]":
        """From the beginning, in `pause` seconds."""
        self.state, self.due = Looking(), now + pause
        return self.tick(now)

    def _look(self, now: float, tries: int) -> "list[Action]":
        if tries == 0:
            self._xid, self._began = self._draw(), now
        self.state, self.due = Looking(tries=tries + 1), now + self._pause(tries)
        return [self._send(now, DISCOVER, NO_ADDRESS, {})]

    def _ask(self, now: float, offer: Lease, tries: int) -> "list[Action]":
        asked = self.state.asked if isinstance(self.state, Asking) else now
        self.state, self.due = Asking(offer=offer, tries=tries + 1, asked=asked), now + self._pause(tries)
        others = {dhcpwire.REQUESTED_ADDRESS: inet_aton(offer.address),
                  dhcpwire.SERVER_IDENTIFIER: inet_aton(offer.server)}
        return [self._send(now, REQUEST, NO_ADDRESS, others)]

    def _go_on(self, now: float, state: "Bound | Renewing | Rebinding", server: str) -> "list[Action]":
        """Asks for more of the lease; the next time after half of what is left until the next state."""
        self._xid = self._draw()  # each time: an answer is to one of the questions, whose time is known
        if isinstance(state, Bound):
            self._began = now
        after = Renewing if server else Rebinding
        self.state = after(lease=state.lease, since=state.since, asked=now)
        end = state.since + (state.lease.rebind if server else state.lease.seconds)
        self.due = min(end, now + max((end - now) / 2, LEAST_RENEWAL_PAUSE_S))
        return [self._send(now, REQUEST, state.lease.address, {}, server)]

    def _bind(self, lease: Lease, since: float) -> None:
        self.state = Bound(lease=lease, since=since)
        self.due = NEVER if lease.seconds == FOREVER else since + lease.renew

    def _is_of_ours(self, lease: Lease) -> bool:
        """Whether an ACK is for what was asked for.  At the end any server may have taken over."""
        state = self.state
        assert isinstance(state, (Asking, Renewing, Rebinding))
        known = state.offer if isinstance(state, Asking) else state.lease
        return lease.address == known.address and (isinstance(state, Rebinding) or lease.server == known.server)

    def _refused(self, message: Message, now: float) -> "list[Action]":
        state = self.state
        if isinstance(state, (Looking, Bound)):
            return []
        known = state.offer if isinstance(state, Asking) else state.lease
        if not isinstance(state, Rebinding) and message.addresses(dhcpwire.SERVER_IDENTIFIER) != (known.server,):
            return []
        if isinstance(state, Asking):
            return self._restart(now, NAK_PAUSE_S)
        return [Lose(reason="the server has taken the lease back"), *self._restart(now, 0)]

    def _pause(self, tries: int) -> float:
        pause: float = min(FIRST_PAUSE_S * (1 << min(tries, 16)), LONGEST_PAUSE_S)
        return pause + JITTER_S * (self._draw() / (1 << 31) - 1)

    def _send(self, now: float, kind: int, client: str, others: dict[int, bytes], server: str = "") -> Send:
        message = Message(xid=self._xid, mac=self._mac, client=client, seconds=int(now - self._began),
                          options=dhcpwire.options_for(kind, self._mac, self._hostname, others))
        return Send(message=message, server=server)
