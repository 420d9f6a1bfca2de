"""Ends of one generation up and down: they meet, or both sides refuse with a sentence and keep what they have."""

import pytest

from tests.link_pair import Pair
from tether.link import cbor
from tether.link.control import REQUEST
from tether.link.endpoint import LIVE
from tether.link.events import Answered, Connected, Refused, Requested
from tether.link.frame import GENERATION, OLDEST_GENERATION
from tether.link.hello import APPLIANCE, TETHER
from tether.link.messages import CONTROL_STREAM, Done, Fault, Ping

UP, DOWN = GENERATION + 1, OLDEST_GENERATION - 1


def speaking(oldest: int, newest: int) -> Pair:
    """A pair whose appliance says that it speaks these."""
    pair = Pair()
    new = pair.appliance._new_hello
    pair.appliance._new_hello = lambda: new().but(generations=(oldest, newest))  # type: ignore[method-assign]
    pair.appliance._mine = pair.appliance._new_hello()
    return pair


@pytest.mark.parametrize(
    ("oldest", "newest", "meet"),
    [(OLDEST_GENERATION, UP, True), (UP, UP, False), (DOWN, GENERATION, True), (DOWN, DOWN, False)],
)
def test_neighbours_meet_or_refuse_with_a_sentence(oldest: int, newest: int, meet: bool) -> None:
    pair = speaking(oldest, newest)
    pair.tether.stream(17).write(b"kept")
    pair.connect()
    if meet:
        (connected,) = pair.of(TETHER, Connected)
        assert isinstance(connected, Connected)
        assert connected.generation == GENERATION
        assert pair.appliance.stream(17).read(10) == b"kept"
        return
    for role in (TETHER, APPLIANCE):
        refused = pair.of(role, Refused)[0]
        assert isinstance(refused, Refused)
        assert "none in common" in refused.reason
        assert "Update the " + ("tether" if newest == UP else "appliance") in refused.reason
    assert pair.tether.phase != LIVE
    assert pair.tether.stream(17).room < pair.tether.limits.ring  # what was written waits for one that fits


@pytest.mark.parametrize(
    ("name", "body"), [("Ping", {"loudly": True}), ("Dance", {}), ("Signal", {"session": "first", "number": 9})]
)
def test_a_message_of_the_next_generation(name: str, body: dict[str, object]) -> None:
    """A new field, a new request, a field that means something else: each gets an answer in words, the link goes on."""
    pair = Pair()
    pair.connect()
    messenger = pair.appliance.messenger
    id = messenger.last_id + 1
    envelope = cbor.dumps([REQUEST, id, name, body])
    messenger.last_id, messenger.pending[id] = id, name
    sender = pair.appliance.mux.sender(CONTROL_STREAM)
    sender.write(len(envelope).to_bytes(4, "big") + envelope)
    pair.appliance.mux.outbox.wrote(sender)
    pair.run()
    (answered,) = pair.of(APPLIANCE, Answered)
    assert isinstance(answered, Answered)
    assert isinstance(answered.message, Fault)
    assert answered.message.step == name
    assert answered.message.text
    assert not pair.of(TETHER, Requested)
    pair.appliance.request(Ping())
    pair.run()
    (requested,) = pair.of(TETHER, Requested)
    assert isinstance(requested, Requested)
    pair.tether.answer(requested.id, Done())
