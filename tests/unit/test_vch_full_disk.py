"""A host disk without room: waiting, going on, giving up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tether.link.reactor import Reactor
from vch.errors import MachineLostError
from vch.qemu import full_disk
from vch.qemu.full_disk import FullDisk
from vch.qemu.qmp import QmpEvent

NO_ROOM = QmpEvent("BLOCK_IO_ERROR", {"action": "stop", "node-name": "drive1", "nospace": True, "reason": "No space"})


@pytest.fixture
def reactor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reactor]:
    for name, seconds in (("PATIENCE_SECONDS", 60.0), ("RETRY_SECONDS", 0.05), ("SETTLED_SECONDS", 0.05)):
        monkeypatch.setattr(full_disk, name, seconds)
    made = Reactor()
    yield made
    made.close()


def test_it_goes_on_when_there_is_room_again(reactor: Reactor) -> None:
    asked: list[str] = []
    told: list[str] = []
    disk = FullDisk(reactor, lambda: asked.append("cont"), told.append)
    for _ in range(2):  # twice full, twice told
        for _ in range(20):  # many writes fail together
            disk.event(NO_ROOM)
        assert reactor.run_until(lambda: disk._since is None, 60)
    assert len(asked) == 2
    assert len(told) == 2
    reactor.run_until(lambda: False, 0.4)  # and nothing more comes of it


def test_it_gives_up(reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disk, "PATIENCE_SECONDS", 0.3)
    disk = FullDisk(reactor, lambda: disk.event(NO_ROOM), lambda _sentence: None)
    disk.event(NO_ROOM)
    with pytest.raises(MachineLostError, match="the host's disk is full"):
        reactor.run_until(lambda: False, 60)


def test_after_the_end_it_is_still(reactor: Reactor) -> None:
    asked: list[str] = []
    disk = FullDisk(reactor, lambda: asked.append("cont"), lambda _sentence: None)
    disk.event(NO_ROOM)
    disk.close()
    reactor.run_until(lambda: False, 0.5)
    assert asked == []


def test_other_errors_are_the_containers(reactor: Reactor) -> None:
    told: list[str] = []
    FullDisk(reactor, lambda: None, told.append).event(
        QmpEvent("BLOCK_IO_ERROR", {"action": "report", "node-name": "drive1", "reason": "Input/output error"})
    )
    assert told == ["disk drive1: Input/output error: the container gets I/O errors"]
