"""A machine that gets no identity, and could be another's twin: it says why, ends, and has run nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.vm.harness import Container, container, text
from tether.link.messages import Fault
from tether.spec import Identity
from vch.clone.origin import Cloning
from vch.clone.store import Template
from vch.errors import GuestError, MachineError
from vch.machine import driver, machine

pytestmark = pytest.mark.vm

GONE_S = 120.0  # for a machine to be gone once something has ended it
TOO_LITTLE = ("spec.identity.entropy", "31 bytes", "send 32 to 4096 bytes from a good source")
NO_TIME = ("spec.identity.clock_ns", "0 is not a time of this era", "send CLOCK_REALTIME in nanoseconds")


@pytest.fixture
def image(home: Path, demo_layout: Path) -> str:
    """The demo image by its layout."""
    return f"oci:{demo_layout}:demo"


def weak() -> Identity:
    return Identity(entropy=bytes(31), clock_ns=time.time_ns())


def timeless() -> Identity:
    return Identity(entropy=bytes(32), clock_ns=0)


def assert_named(error: MachineError, step: str, why: tuple[str, str, str]) -> None:
    """The guest told step, object, cause and remedy, and the console has them, too."""
    object, cause, hint = why
    assert isinstance(error, GuestError)
    assert error.fault == Fault(step=step, object=object, text=cause, hint=hint)
    assert f"tether: {step}: {object}: {cause} ({hint})" in error.console


def assert_nothing_starts(made: Container, why: tuple[str, str, str]) -> None:
    """The Start is answered with the reason, the last words are the same, and the process has not run."""
    with pytest.raises(GuestError) as raised:
        made.start()
    end = made.machine.join(GONE_S)
    assert_named(end, "take identity", why)
    assert isinstance(end, GuestError)
    assert raised.value.fault == end.fault
    assert text(made.out) == ""


def test_a_clone_that_does_not_wake_and_what_boots_instead(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[MachineError] = []

    def give_up(_self: Cloning, _template: Template, error: MachineError) -> None:
        failed.append(error)  # and the template stays: other tests have it too

    monkeypatch.setattr(Cloning, "give_up", give_up)
    monkeypatch.setattr(driver, "new_identity", weak)
    monkeypatch.setattr(machine, "new_identity", weak)
    with container("--network", "none", image, "echo", "it runs", start=False) as made:
        (error,) = failed
        assert_named(error, "wake up", TOO_LITTLE)
        assert not made.machine.cloned
        assert_nothing_starts(made, TOO_LITTLE)


def test_a_clone_that_is_told_to_start(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "new_identity", timeless)
    with container("--network", "none", image, "echo", "it runs", start=False) as made:
        assert made.machine.cloned
        assert_nothing_starts(made, NO_TIME)
