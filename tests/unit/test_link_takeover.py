"""An appliance goes away for good and another process continues: with a snapshot, or with nothing."""

import os
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import initialize, rule
from test_link_model import LIMITS, STREAMS, Link

from tests.link_pair import Pair
from tether.link.endpoint import LIVE, Endpoint
from tether.link.errors import ProtocolError
from tether.link.events import Answered, Connected, Event, Gone, Notified, Overtaken, Requested
from tether.link.hello import APPLIANCE, TETHER
from tether.link.limits import Limits
from tether.link.messages import Done, Ended, Exited, Ping, Pong, Ready, Resize, Shutdown

SMALL = Limits(payload=64, window=256, ring=256, streams=8, message=1024)


def replace(pair: Pair, data: bytes | None) -> None:
    """The appliance's process is killed; another one starts, from a snapshot or without."""
    pair.tether.disconnected()
    pair.appliance = Endpoint.restore(data, SMALL) if data is not None else Endpoint(APPLIANCE, SMALL)
    pair.seen[APPLIANCE].clear()
    pair.tether.connected()
    pair.appliance.connected()
    pair.run()


@pytest.fixture
def pair() -> Pair:
    one = Pair(SMALL, durable=True)
    one.connect()
    return one


def test_what_was_read_but_not_saved_comes_again(pair: Pair) -> None:
    out = pair.tether.stream(17)
    out.write(b"a" * 100)
    pair.settle()
    assert pair.appliance.stream(17).read(60) == b"a" * 60
    data = pair.appliance.snapshot()
    pair.appliance.saved(data)
    pair.settle()
    assert out.room == 256 - 40
    assert pair.appliance.stream(17).read(100) == b"a" * 40
    out.write(b"b" * 10)
    pair.settle()
    replace(pair, data)
    (connected,) = pair.of(APPLIANCE, Connected)
    assert isinstance(connected, Connected)
    assert connected.resumed
    assert not pair.of(APPLIANCE, Gone)
    assert pair.appliance.stream(17).read(100) == b"a" * 40 + b"b" * 10


def test_messages_come_again_until_they_are_saved(pair: Pair) -> None:
    first, second = (Ended(session=number, state=Exited(code=number)) for number in (1, 2))
    pair.tether.notify(first)
    pair.settle()
    data = pair.appliance.snapshot()
    pair.appliance.saved(data)
    pair.tether.notify(second)
    pair.settle()
    for _ in range(2):
        replace(pair, data)
        assert pair.of(APPLIANCE, Notified) == [Notified(message=second)]


def test_what_was_written_before_the_snapshot_arrives_once(pair: Pair) -> None:
    pair.appliance.stream(16).write(b"sent ")
    pair.run()
    pair.appliance.stream(16).write(b"not sent ")
    data = pair.appliance.snapshot()
    pair.run()  # sent after all
    replace(pair, data)
    pair.appliance.stream(16).write(b"later")
    pair.appliance.stream(16).finish()
    pair.settle()
    assert pair.tether.stream(16).read(100) == b"sent not sent later"
    assert pair.tether.stream(16).ended
    assert not pair.of(APPLIANCE, Overtaken)


def test_what_was_written_after_the_snapshot_is_told(pair: Pair) -> None:
    pair.appliance.stream(16).write(b"known ")
    pair.run()
    data = pair.appliance.snapshot()
    pair.appliance.stream(16).write(b"forgotten ")
    pair.run()
    pair.tether.disconnected()
    pair.appliance = Endpoint.restore(data, SMALL)
    pair.appliance.stream(16).write(b"later")
    pair.seen[APPLIANCE].clear()
    pair.connect()
    assert pair.of(APPLIANCE, Overtaken) == [Overtaken(stream=16, count=10)]
    assert pair.tether.stream(16).read(100) == b"known forgotten later"


def test_requests_of_the_snapshot_are_answered_and_ids_are_never_used_again(pair: Pair) -> None:
    known = pair.appliance.request(Ping())
    data = pair.appliance.snapshot()
    forgotten = pair.appliance.request(Resize(session=0, rows=1, columns=1))
    pair.run()
    replace(pair, data)
    assert list(pair.appliance.pending) == [known]
    assert pair.of(APPLIANCE, Overtaken)
    new = pair.appliance.request(Shutdown())
    pair.run()
    assert [event.id for event in pair.of(TETHER, Requested) if isinstance(event, Requested)] == [known, forgotten, new]
    pair.tether.answer(known, Pong(monotonic_ns=1, realtime_ns=1))
    pair.tether.answer(forgotten, Done())
    pair.tether.answer(new, Done())
    pair.run()
    ids = [event.id for event in pair.of(APPLIANCE, Answered) if isinstance(event, Answered)]
    assert ids == [known, forgotten, new]


def test_a_finished_stream_is_kept_until_it_is_saved(pair: Pair) -> None:
    out = pair.tether.stream(17)
    data = pair.appliance.snapshot()
    out.write(b"all of it")
    out.finish()
    pair.settle()
    assert pair.appliance.stream(17).read(100) == b"all of it"
    pair.settle()
    assert not out.drained
    replace(pair, data)
    into = pair.appliance.stream(17)
    assert into.read(100) == b"all of it"
    assert into.ended
    pair.appliance.saved(pair.appliance.snapshot())
    pair.settle()
    assert pair.tether.stream(17).drained
    assert set(pair.tether.mux.senders) == {0}
    assert set(pair.appliance.mux.receivers) == {0}


def test_a_stranger_takes_over_from_now_on() -> None:
    pair = Pair(SMALL)
    pair.connect()
    out, stdin = pair.tether.stream(17), pair.tether.stream(16)
    out.write(b"seen by the first")
    pair.appliance.stream(16).write(b"typed before, ")
    pair.appliance.request(Ping())
    pair.tether.notify(Ready(version="1", kernel="k"))
    pair.settle()
    assert pair.appliance.stream(17).read(100)
    pair.settle()
    out.write(b"seen by nobody")
    replace(pair, None)
    (connected,) = pair.of(APPLIANCE, Connected)
    assert isinstance(connected, Connected)
    assert not connected.resumed
    assert Gone(stream=17, count=17) in pair.of(APPLIANCE, Gone)
    assert Overtaken(stream=16, count=14) in pair.of(APPLIANCE, Overtaken)
    assert pair.appliance.stream(17).read(100) == b"seen by nobody"
    pair.appliance.stream(16).write(b"typed after")
    id = pair.appliance.request(Ping())
    pair.settle()
    assert stdin.read(100) == b"typed before, typed after"
    assert pair.of(TETHER, Requested)[-1] == Requested(id=id, message=Ping())
    pair.tether.answer(id, Pong(monotonic_ns=1, realtime_ns=1))
    pair.run()
    assert pair.of(APPLIANCE, Answered) == [Answered(id=id, message=Pong(monotonic_ns=1, realtime_ns=1))]
    replaced = pair.of(TETHER, Connected)[-1]
    assert isinstance(replaced, Connected)
    assert replaced.replaced


def test_a_stranger_in_the_middle_of_a_message() -> None:
    """Both directions: half of a request and half of an event had arrived."""
    pair = Pair(SMALL)
    pair.connect()
    pair.tether.notify(Ready(version="v" * 200, kernel="k"))
    pair.appliance.request(Shutdown(reason="r" * 200))
    pair.appliance.receive(pair.tether.transmit())
    pair.tether.receive(pair.appliance.transmit())
    replace(pair, None)
    id = pair.appliance.request(Ping())
    pair.settle()
    assert pair.of(TETHER, Requested) == [Requested(id=id, message=Ping())]
    assert pair.of(APPLIANCE, Notified) == [Notified(message=Ready(version="v" * 200, kernel="k"))]


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xa0", b"\xa1aversion\x02"])
def test_what_is_no_snapshot_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Endpoint.restore(data)


class DurableLink(Link):
    """The model of test_link_model, with an appliance that is killed and restored from its last snapshot."""

    @initialize(limits=st.sampled_from(LIMITS), seed=st.integers(0, 1 << 30))
    def begin(self, limits: Limits, seed: int) -> None:
        super().begin(limits, seed)
        self.endpoint[APPLIANCE] = Endpoint(APPLIANCE, limits, durable=True)
        self.endpoint[APPLIANCE].connected()
        self.gone: set[int] = set()  # streams of the appliance that were complete when it was killed
        self._renew_handles()
        self.save()

    def _renew_handles(self) -> None:
        for number in STREAMS:
            self.handles[APPLIANCE, number] = self.endpoint[APPLIANCE].stream(number)

    @rule()
    def save(self) -> None:
        """The appliance writes its state to disk."""
        mine = self.endpoint[APPLIANCE]
        self.disk = mine.snapshot()
        self.saved_read = {number: self.read[TETHER, number] for number in STREAMS}
        self.saved_written = {number: len(self.written[APPLIANCE, number]) for number in STREAMS}
        self.saved_finished = {key for key in self.finished if key[0] == APPLIANCE}
        self.saved_heard = list(self.heard)
        mine.saved(self.disk)

    @rule()
    def kill(self) -> None:
        """The appliance is killed and comes back from its disk; the channel behaves until both are connected."""
        self.endpoint[TETHER].disconnected()
        self.collect(TETHER)
        for pieces in self.channel.values():
            pieces.clear()
        mine = self.endpoint[APPLIANCE] = Endpoint.restore(self.disk, self.limits)
        self._renew_handles()
        self.heard = list(self.saved_heard)
        self.finished = {key for key in self.finished if key[0] == TETHER} | self.saved_finished
        for number in STREAMS:
            self.read[TETHER, number] = self.saved_read[number]
        mine.connected()
        self.endpoint[TETHER].connected()
        overtaken: dict[int, int] = {}
        while not (mine.phase == LIVE and self.endpoint[TETHER].phase == LIVE):
            for source, target in ((APPLIANCE, TETHER), (TETHER, APPLIANCE)):
                self.endpoint[target].receive(self.endpoint[source].transmit())
        self.collect(TETHER)
        events: list[Event] = []
        for event in mine.events():
            if isinstance(event, Overtaken):
                overtaken[event.stream] = event.count
            else:
                events.append(event)
            assert not isinstance(event, Gone)
        for number in STREAMS:
            into = self.handles[TETHER, number]._in
            if into is not None and into.end is not None:  # all of it had arrived; perhaps both have forgotten it
                self.finished.add((APPLIANCE, number))
                self.gone.add(number)
                continue
            end = self.saved_written[number] + overtaken.get(number, 0)
            self.written[APPLIANCE, number] = self.written[APPLIANCE, number][:end]
            out = self.handles[APPLIANCE, number]._out
            if out is not None and out.finished:
                self.finished.add((APPLIANCE, number))
        self.take(APPLIANCE, events)

    def finish(self, role: str, number: int) -> None:
        if role == TETHER or number not in self.gone:
            super().finish(role, number)

    def request(self) -> None:
        """Requests have a test of their own."""

    def abort(self, role: str, number: int) -> None:
        """Giving up is tried in the other model."""

    def stop(self, role: str, number: int) -> None:
        """As above."""

    def tick(self, role: str) -> None:
        super().tick(role)
        if role == APPLIANCE and self.healing:
            self.save()


TestDurableLink: Any = DurableLink.TestCase
TestDurableLink.settings = settings(
    max_examples=int(os.environ.get("LINK_EXAMPLES", "60")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
