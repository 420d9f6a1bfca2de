"""Two real endpoints with the worst channel between them, compared with plain byte strings.

The channel drops, cuts, duplicates, reorders, delays and corrupts; connections end on one side, on both, or on
one side without the other noticing.  Whatever was read is always a prefix of what was written; after the channel has
healed everything arrives, once, and nothing is left in memory.
"""

import os
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tether.link.endpoint import LIVE, Endpoint
from tether.link.events import Answered, Event, Notified, Requested
from tether.link.hello import APPLIANCE, TETHER
from tether.link.limits import Limits
from tether.link.messages import Ended, Exited, Ping, Pong

PATTERN = bytes(index * 7 % 251 for index in range(251))
STREAMS = (16, 17, 18, 19)
ENDS = (APPLIANCE, TETHER)
LIMITS = [
    Limits(payload=64, window=256, ring=300, streams=8, message=2048),
    Limits(payload=1000, window=4096, ring=3000, streams=8, message=2048),
    Limits(payload=64, window=200, ring=500, streams=8, message=2048, flight=150),
    Limits(payload=100, window=1000, ring=1000, streams=2, message=2048, flight=300),
    Limits(payload=5000, window=20000, ring=20000, streams=8, message=2048, ends_suffice=True),
]
ends = st.sampled_from(ENDS)
streams = st.sampled_from(STREAMS)
indices = st.integers(0, 5)


def other(role: str) -> str:
    return APPLIANCE if role == TETHER else TETHER


class Link(RuleBasedStateMachine):
    """See the module."""

    limits: Limits

    @initialize(limits=st.sampled_from(LIMITS), seed=st.integers(0, 1 << 30))
    def begin(self, limits: Limits, seed: int) -> None:
        self.limits = limits
        counter = iter(range(seed, seed + 1 << 40))

        def random(size: int) -> bytes:  # repeatable, never the same
            return next(counter).to_bytes(size, "little")

        self.endpoint = {role: Endpoint(role, limits, random=random) for role in ENDS}
        self.channel: dict[str, list[bytes]] = {role: [] for role in ENDS}  # from that end
        self.written = {(role, number): b"" for role in ENDS for number in STREAMS}
        self.read = {(role, number): b"" for role in ENDS for number in STREAMS}  # what that role's peer read
        self.finished: set[tuple[str, int]] = set()
        self.given_up: set[tuple[str, int]] = set()  # by their writer or their reader
        self.handles = {(role, number): self.endpoint[role].stream(number) for role in ENDS for number in STREAMS}
        self.told: list[int] = []
        self.heard: list[int] = []
        self.asked: list[int] = []
        self.requested: list[int] = []
        self.answered: list[int] = []
        self.healing = False
        for one in self.endpoint.values():
            one.connected()

    # the users of the link

    @rule(role=ends, number=streams, size=st.integers(1, 700) | st.just(6000))
    def write(self, role: str, number: int, size: int) -> None:
        if (role, number) in self.finished:
            return
        position = len(self.written[role, number])
        data = (PATTERN[position % len(PATTERN) :] + PATTERN * (size // len(PATTERN) + 1))[:size]
        count = self.handles[role, number].write(data)
        self.written[role, number] += data[:count]

    @rule(role=ends, number=streams)
    def finish(self, role: str, number: int) -> None:
        self.handles[role, number].finish()
        self.finished.add((role, number))

    @rule(role=ends, number=streams)
    def abort(self, role: str, number: int) -> None:
        self.handles[role, number].abort()
        self.given_up.add((role, number))
        self.finished.add((role, number))

    @rule(role=ends, number=streams)
    def stop(self, role: str, number: int) -> None:
        self.handles[role, number].stop()
        self.given_up.add((other(role), number))

    @rule(role=ends, number=streams, size=st.integers(1, 500) | st.just(9000))
    def read_some(self, role: str, number: int, size: int) -> None:
        data = self.handles[role, number].read(size)
        assert len(data) <= size
        self.read[other(role), number] += data

    @rule(code=st.integers(0, 255))
    def notify(self, code: int) -> None:
        if len(self.told) < 20:
            self.endpoint[TETHER].notify(Ended(session=len(self.told), state=Exited(code=code)))
            self.told.append(len(self.told))

    @rule()
    def request(self) -> None:
        if len(self.asked) < 20:
            self.asked.append(self.endpoint[APPLIANCE].request(Ping()))

    # the channel

    @rule(role=ends)
    def transmit(self, role: str) -> None:
        data = self.endpoint[role].transmit()
        if data:
            self.channel[role].append(data)

    @rule(role=ends, share=st.floats(0, 1))
    def deliver(self, role: str, share: float) -> None:
        if self.channel[role]:
            data = self.channel[role].pop(0)
            cut = max(1, int(len(data) * share))
            if data[cut:]:
                self.channel[role].insert(0, data[cut:])
            self.endpoint[other(role)].receive(data[:cut])
            self.collect(other(role))

    @rule(role=ends)
    def deliver_all(self, role: str) -> None:
        pieces, self.channel[role] = self.channel[role], []
        for data in pieces:
            self.endpoint[other(role)].receive(data)
        self.collect(other(role))

    @rule(role=ends, index=indices)
    def drop(self, role: str, index: int) -> None:
        if index < len(self.channel[role]):
            del self.channel[role][index]

    @rule(role=ends, index=indices, share=st.floats(0, 1))
    def tear(self, role: str, index: int, share: float) -> None:
        if index < len(self.channel[role]):
            data = self.channel[role][index]
            self.channel[role][index] = data[: int(len(data) * share)]

    @rule(role=ends, index=indices)
    def duplicate(self, role: str, index: int) -> None:
        if index < len(self.channel[role]):
            self.channel[role].insert(index, self.channel[role][index])

    @rule(role=ends, index=indices)
    def reorder(self, role: str, index: int) -> None:
        if index + 1 < len(self.channel[role]):
            pair = self.channel[role][index : index + 2]
            self.channel[role][index : index + 2] = reversed(pair)

    @rule(role=ends, index=indices, share=st.floats(0, 1, exclude_max=True), damage=st.integers(1, 255))
    def corrupt(self, role: str, index: int, share: float, damage: int) -> None:
        changes_nothing = self.limits.ends_suffice  # such a channel loses bytes, but those that come are right
        if index < len(self.channel[role]) and self.channel[role][index] and not changes_nothing:
            data = bytearray(self.channel[role][index])
            data[int(len(data) * share)] ^= damage
            self.channel[role][index] = bytes(data)

    @rule(role=ends, index=indices, noise=st.binary(min_size=1, max_size=40))
    def disturb(self, role: str, index: int, noise: bytes) -> None:
        self.channel[role].insert(min(index, len(self.channel[role])), noise)

    # connections and time

    @rule()
    def cut(self) -> None:
        for role in ENDS:
            self.endpoint[role].disconnected()
            self.channel[role].clear()
            self.collect(role)
        for role in ENDS:
            self.endpoint[role].connected()

    @rule(role=ends, lost=st.booleans())
    def reconnect_unnoticed(self, role: str, lost: bool) -> None:
        self.endpoint[role].disconnected()
        if lost:
            self.channel[role].clear()
        self.endpoint[role].connected()
        self.collect(role)

    @rule(role=ends)
    def tick(self, role: str) -> None:
        self.endpoint[role].tick()
        self.endpoint[role].acknowledge()
        self.collect(role)

    # what must hold

    def collect(self, role: str) -> None:
        self.take(role, self.endpoint[role].events())

    def take(self, role: str, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Requested):
                self.requested.append(event.id)
                self.endpoint[TETHER].answer(event.id, Pong(monotonic_ns=1, realtime_ns=1))
            elif isinstance(event, Answered):
                assert event.message == Pong(monotonic_ns=1, realtime_ns=1)
                self.answered.append(event.id)
            elif isinstance(event, Notified):
                assert isinstance(event.message, Ended)
                self.heard.append(event.message.session)

    @precondition(lambda self: hasattr(self, "read"))
    @invariant()
    def nothing_but_a_prefix_was_read(self) -> None:
        for key, got in self.read.items():
            assert self.written[key].startswith(got)
        assert self.heard == self.told[: len(self.heard)]
        assert self.requested == self.asked[: len(self.requested)]
        assert self.answered == self.asked[: len(self.answered)]

    def teardown(self) -> None:
        if not hasattr(self, "endpoint"):
            return
        self.healing = True
        for number in STREAMS:
            for role in ENDS:
                self.finish(role, number)
        for _ in range(400):
            for role in ENDS:
                while data := self.endpoint[role].transmit():
                    self.channel[role].append(data)
                self.deliver_all(role)
                for number in STREAMS:
                    self.read_some(role, number, 1 << 20)
                self.tick(role)
            quiet = all(one.settled and not one.mux.waiting for one in self.endpoint.values())
            if quiet and len(self.answered) == len(self.asked):
                break
        assert all(one.phase == LIVE for one in self.endpoint.values())
        self.nothing_but_a_prefix_was_read()
        for key in self.read.keys() - self.given_up:
            assert self.read[key] == self.written[key]
        assert self.heard == self.told
        assert self.answered == self.asked
        for (role, _number), handle in self.handles.items():
            assert handle.ended or handle._in is None, (role, handle.number)  # None: forgotten before a restart
            assert handle.drained, (role, handle.number)
        for one in self.endpoint.values():
            assert set(one.mux.senders) | set(one.mux.receivers) == {0}


TestLink: Any = Link.TestCase
TestLink.settings = settings(
    max_examples=int(os.environ.get("LINK_EXAMPLES", "60")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
