"""Two endpoints talk: messages, streams, credit, ends, reconnection."""

import os

import pytest

from tests.link_pair import Pair
from tether.link.errors import ProtocolError, UsageError
from tether.link.events import (
    Aborted,
    Answered,
    Connected,
    Disconnected,
    Drained,
    Notified,
    Readable,
    Refused,
    Requested,
    Stopped,
    Writable,
)
from tether.link.hello import APPLIANCE, TETHER, hello_of
from tether.link.limits import Limits
from tether.link.messages import Done, Ended, Exited, Fault, Ping, Pong, Ready, Resize, Signal

SMALL = Limits(payload=64, window=256, ring=256, streams=8, message=1024)


@pytest.fixture
def pair() -> Pair:
    one = Pair()
    one.connect()
    return one


@pytest.fixture
def small() -> Pair:
    one = Pair(SMALL)
    one.connect()
    return one


def test_both_ends_connect(pair: Pair) -> None:
    for role, other in ((APPLIANCE, pair.tether), (TETHER, pair.appliance)):
        (event,) = pair.seen[role]
        assert isinstance(event, Connected)
        assert event.instance == other.instance
        assert event.software == other.software
        assert not event.resumed
        assert not event.replaced


def test_a_request_gets_its_answer(pair: Pair) -> None:
    id = pair.appliance.request(Ping())
    pair.run()
    (asked,) = pair.of(TETHER, Requested)
    assert asked == Requested(id=id, message=Ping())
    pair.tether.answer(id, Pong(monotonic_ns=1, realtime_ns=2))
    pair.run()
    assert pair.of(APPLIANCE, Answered) == [Answered(id=id, message=Pong(monotonic_ns=1, realtime_ns=2))]
    assert not pair.appliance.pending


def test_events_and_requests_before_the_connection_arrive_once() -> None:
    pair = Pair()
    ready = Ready(version="1", kernel="6.1")
    pair.tether.notify(ready)
    id = pair.appliance.request(Signal(session=0, number=15))
    pair.connect()
    pair.disconnect()
    pair.connect()
    assert pair.of(APPLIANCE, Notified) == [Notified(message=ready)]
    assert pair.of(TETHER, Requested) == [Requested(id=id, message=Signal(session=0, number=15))]


def test_a_fault_is_an_answer_to_anything(pair: Pair) -> None:
    fault = Fault(step="resize", object="session 3", text="no such session", errno="ESRCH")
    id = pair.appliance.request(Resize(session=3, rows=1, columns=2))
    pair.run()
    pair.tether.answer(id, fault)
    pair.run()
    assert pair.of(APPLIANCE, Answered) == [Answered(id=id, message=fault)]


def test_an_answer_of_the_wrong_type_is_a_fault(pair: Pair) -> None:
    id = pair.appliance.request(Ping())
    pair.run()
    pair.tether.answer(id, Done())
    pair.run()
    (answered,) = pair.of(APPLIANCE, Answered)
    assert isinstance(answered, Answered)
    assert isinstance(answered.message, Fault)
    assert answered.message.maybe_done


def test_unions_and_defaults_survive(pair: Pair) -> None:
    message = Ended(session=3, state=Exited(code=7))
    pair.tether.notify(message)
    pair.run()
    assert pair.of(APPLIANCE, Notified) == [Notified(message=message)]


def test_a_stream_carries_bytes_and_its_end(pair: Pair) -> None:
    data = os.urandom(3_000_000)
    out, into = pair.tether.stream(17), pair.appliance.stream(17)
    sent, got = 0, b""
    while not into.ended:
        sent += out.write(data[sent : sent + 100_000])
        if sent == len(data):
            out.finish()
        pair.run()
        got += into.read(1 << 30)
    assert got == data
    pair.settle()
    assert out.drained
    assert pair.of(TETHER, Drained) == [Drained(stream=17)]
    assert 17 not in pair.tether.mux.senders
    assert 17 not in pair.appliance.mux.receivers


def test_both_directions_of_a_stream_are_independent(pair: Pair) -> None:
    a, b = pair.tether.stream(20), pair.appliance.stream(20)
    a.write(b"to appliance")
    a.finish()
    b.write(b"to tether")
    pair.run()
    assert b.read(100) == b"to appliance"
    assert b.ended
    assert a.read(100) == b"to tether"
    assert not a.ended


def test_a_stalled_reader_stops_its_own_stream_only(small: Pair) -> None:
    stalled, other = small.tether.stream(17), small.tether.stream(18)
    assert stalled.write(b"s" * 10_000) == 256
    small.run()
    assert small.appliance.stream(17).buffered == 256
    assert stalled.write(b"s" * 10_000) == 0
    got = b""
    for _ in range(10):
        assert other.write(b"o" * 100) == 100
        small.settle()
        got += small.appliance.stream(18).read(1000)
    assert got == b"o" * 1000
    small.tether.notify(Ready(version="", kernel=""))
    small.run()
    assert small.of(APPLIANCE, Notified)
    small.appliance.stream(17).read(200)
    small.settle()
    assert small.of(TETHER, Writable) == [Writable(stream=17)]
    assert stalled.room == 200


def test_readable_is_told_once_for_each_fetch(small: Pair) -> None:
    out = small.tether.stream(17)
    for _ in range(3):
        out.write(b"x")
        small.appliance.receive(small.tether.transmit())
    assert small.appliance.events() == [Readable(stream=17)]


def test_an_empty_stream_ends(pair: Pair) -> None:
    into = pair.tether.stream(16)
    pair.appliance.stream(16).finish()
    pair.run()
    assert into.ended
    assert pair.of(TETHER, Readable) == [Readable(stream=16)]
    pair.settle()
    assert not pair.tether.mux.receivers.keys() - {0}
    assert not pair.appliance.mux.senders.keys() - {0}


def test_writing_after_the_end_is_an_error_of_the_caller(pair: Pair) -> None:
    out = pair.tether.stream(17)
    out.finish()
    out.finish()
    with pytest.raises(UsageError):
        out.write(b"x")


def test_stop_tells_the_writer_and_discards(small: Pair) -> None:
    out, into = small.tether.stream(17), small.appliance.stream(17)
    out.write(b"x" * 256)
    small.run()
    into.stop()
    small.settle()
    assert small.of(TETHER, Stopped) == [Stopped(stream=17)]
    assert out.stopped
    assert out.write(b"y" * 5000) == 5000
    assert into.ended
    assert not small.tether.mux.senders.keys() - {0}
    assert not small.appliance.mux.receivers.keys() - {0}


def test_stop_before_the_stream_is_opened(small: Pair) -> None:
    small.tether.stream(16).stop()
    small.settle()
    small.appliance.stream(16).write(b"nobody wants this")
    small.settle()
    assert small.of(APPLIANCE, Stopped) == [Stopped(stream=16)]


def test_abort_tells_the_reader(small: Pair) -> None:
    out, into = small.tether.stream(17), small.appliance.stream(17)
    out.write(b"x" * 100)
    small.run()
    out.write(b"y" * 100)
    out.abort()
    small.settle()
    assert small.of(APPLIANCE, Aborted) == [Aborted(stream=17)]
    assert into.read(1000) == b"x" * 100
    assert into.ended
    assert into.aborted
    small.settle()
    assert not small.appliance.mux.receivers.keys() - {0}


def test_thousands_of_streams_in_a_row_leave_nothing(small: Pair) -> None:
    for session in range(2000):
        number = 16 + 4 * session
        out, into = small.tether.stream(number + 1), small.appliance.stream(number + 1)
        out.write(b"hello")
        out.finish()
        small.run()
        assert into.read(10) == b"hello"
        small.run()
    small.settle()
    del out, into
    for end in (small.tether, small.appliance):
        assert set(end.mux.senders) | set(end.mux.receivers) == {0}
        assert not end.mux._facades


def test_more_streams_than_the_peer_takes_wait_for_their_turn(small: Pair) -> None:
    streams = [small.tether.stream(16 + number) for number in range(20)]
    for stream in streams:
        stream.write(b"x")
        stream.finish()
    got = set()
    for _ in range(10):
        small.settle()
        for number in range(20):
            if small.appliance.stream(16 + number).read(10):
                got.add(number)
    assert got == set(range(20))


def test_control_passes_bulk(small: Pair) -> None:
    out = small.tether.stream(17)
    out.write(b"x" * 256)
    first = small.tether.transmit()
    small.tether.notify(Ready(version="v", kernel="k"))
    second = small.tether.transmit()
    small.appliance.receive(first)
    small.appliance.receive(second)
    assert Notified(message=Ready(version="v", kernel="k")) in small.appliance.events()
    assert len(first) < 2 * SMALL.payload


def test_disconnection_at_any_moment_loses_nothing(small: Pair) -> None:
    data = os.urandom(20_000)
    out, into = small.tether.stream(17), small.appliance.stream(17)
    sent, got, turn = 0, b"", 0
    while not into.ended:
        turn += 1
        sent += out.write(data[sent : sent + 150])
        if sent == len(data):
            out.finish()
        if turn % 3 == 0:
            small.appliance.receive(small.tether.transmit()[: turn % 70])
            small.disconnect()
            small.connect()
        else:
            small.run()
        got += into.read(100)
    assert got == data
    assert len(small.of(APPLIANCE, Disconnected)) > 10


def test_the_peer_may_reconnect_unnoticed(small: Pair) -> None:
    """As on a virtio port: one side never sees that the other was away."""
    out = small.tether.stream(17)
    out.write(b"first")
    small.tether.transmit()  # lost
    small.appliance.disconnected()
    small.appliance.connected()
    small.run()
    assert small.appliance.stream(17).read(10) == b"first"
    small.settle()
    assert small.tether.settled
    assert small.appliance.settled


def test_a_lost_frame_is_sent_again(small: Pair) -> None:
    out, into = small.tether.stream(17), small.appliance.stream(17)
    out.write(b"a" * 64)
    small.tether.transmit()  # lost
    out.write(b"b" * 64)
    small.run()
    assert into.read(200) == b"a" * 64 + b"b" * 64


def test_a_lost_last_frame_is_asked_for(small: Pair) -> None:
    out, into = small.tether.stream(17), small.appliance.stream(17)
    out.write(b"a" * 64)
    out.finish()
    small.tether.transmit()  # lost
    small.settle()
    assert into.read(200) == b"a" * 64
    assert into.ended


def test_a_lost_hello_is_said_again() -> None:
    pair = Pair()
    pair.appliance.connected()
    pair.tether.connected()
    pair.appliance.transmit()
    pair.tether.transmit()
    pair.settle()
    assert pair.of(APPLIANCE, Connected)
    assert pair.of(TETHER, Connected)


def test_another_vm_answers_what_was_pending_with_a_fault(pair: Pair) -> None:
    id = pair.appliance.request(Ping())
    stream = pair.appliance.stream(17)
    pair.disconnect()
    pair.tether = type(pair)().tether
    pair.seen[APPLIANCE].clear()
    pair.connect()
    answered, connected = pair.seen[APPLIANCE]
    assert isinstance(answered, Answered)
    assert answered.id == id
    assert isinstance(answered.message, Fault)
    assert answered.message.maybe_done
    assert isinstance(connected, Connected)
    assert connected.replaced
    assert stream.broken
    assert stream.ended
    assert not pair.of(TETHER, Requested)
    id = pair.appliance.request(Ping())
    pair.run()
    assert pair.of(TETHER, Requested) == [Requested(id=id, message=Ping())]


def test_two_ends_of_the_same_role_refuse_in_words() -> None:
    pair = Pair()
    other = Pair().appliance
    pair.tether = other
    pair.connect()
    (refused,) = [event for event in pair.seen[APPLIANCE] if isinstance(event, Refused)][:1]
    assert "wrong port" in refused.reason


def test_leaving_says_why_and_a_return_is_welcome(pair: Pair) -> None:
    pair.tether.leave("The VM powers off.")
    pair.run()
    assert pair.of(APPLIANCE, Disconnected) == [Disconnected(reason="The VM powers off.")]
    pair.disconnect()
    pair.connect()
    assert len(pair.of(APPLIANCE, Connected)) == 2


def test_generations_that_do_not_meet_refuse_in_words() -> None:
    pair = Pair()
    pair.appliance._new_hello = lambda: hello_of(  # type: ignore[method-assign]
        APPLIANCE, SMALL, instance=b"i" * 16, connection=b"c" * 8, durable=False, software="vch 99"
    ).but(generations=(7, 9))
    pair.connect()
    for role in (APPLIANCE, TETHER):
        refused = pair.of(role, Refused)[0]
        assert isinstance(refused, Refused)
        assert "vch 99 speaks link generations 7 to 9" in refused.reason or "7 to 9" in refused.reason
        assert "Update the tether." in refused.reason
    pair.settle()
    assert len(pair.of(TETHER, Refused)) <= 2


def test_a_newer_peer_that_still_speaks_ours_is_welcome() -> None:
    pair = Pair()
    new = pair.appliance._new_hello
    pair.appliance._new_hello = lambda: new().but(generations=(1, 9))  # type: ignore[method-assign]
    pair.connect()
    (connected,) = pair.of(TETHER, Connected)
    assert isinstance(connected, Connected)
    assert connected.generation == 1


def test_a_message_that_is_too_long_is_an_error_of_the_caller(small: Pair) -> None:
    with pytest.raises(UsageError, match="takes 1024"):
        small.tether.notify(Ready(version="x" * 2000, kernel=""))


def test_a_hostile_acknowledgement_is_one_error(small: Pair) -> None:
    small.tether.stream(17).write(b"abc")
    small.run()
    small.tether.mux.receivers[0].expected = 1 << 40
    small.tether.mux.receivers[0].due = 2
    small.tether.mux.outbox.owe(small.tether.mux.receivers[0])
    with pytest.raises(ProtocolError, match="acknowledged"):
        small.appliance.receive(small.tether.transmit())


def test_a_farewell_does_not_overtake_what_was_acknowledged(pair: Pair) -> None:
    out, into = pair.tether.stream(17), pair.appliance.stream(17)
    out.write(b"all there is")
    out.finish()
    pair.run()
    assert into.read(100) == b"all there is"
    pair.appliance.leave("has read it")
    pair.run()
    assert out.drained


def test_a_lost_acknowledgement_of_half_a_window_is_asked_for(small: Pair) -> None:
    """A sender that waits for it with a short frame must not wait with the question too."""
    out, into = small.tether.stream(17), small.appliance.stream(17)
    assert out.write(b"a" * 192) == 192
    small.appliance.receive(small.tether.transmit() + small.tether.transmit() + small.tether.transmit())
    assert into.buffered == 192
    assert small.appliance.transmit()  # the acknowledgement, which gets lost
    assert out.write(b"b" * 10) == 10
    assert not small.tether.transmit()
    small.settle()
    assert into.read(1000) == b"a" * 192 + b"b" * 10
