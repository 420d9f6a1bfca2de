"""Who in the container, or at the keyboard, asks the machine to stop or to sleep: it ends in order and says who asked,
or refuses.  Never does it stand still.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm.ext4_disk import content_of, ext4_drive
from tests.vm.harness import Container, container, text
from vch.options.process_values import DEFAULT_CAPABILITIES

pytestmark = pytest.mark.vm

GONE_S = 120.0  # for a machine to be gone once something has ended it
# It notes on a disk that it was told to stop: by then nothing may be unmounted, and afterwards it has to be there.  The
# one who asks is itself, because an exec that asks may be killed before it has ended.
UNTIL_TOLD = """trap 'echo told >> /disk/notes; echo told; exit 0' TERM
trap 'kill -{signal} 1' USR1
echo up
while :; do sleep 100000 & wait; done"""
CTRL_ALT_DEL = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
SLEEPS = ("mem", "freeze", "standby", "disk")  # kernel/power/main.c


@pytest.fixture
def image(home: Path, demo_layout: Path) -> str:
    """The demo image by its layout."""
    return f"oci:{demo_layout}:demo"


def end_in_order(image: str, scratch: Path, ask: Callable[[Container], object], signal: str = "CONT") -> str:
    """How a machine ends once `ask` has asked it to: its process was told, and its disk is whole.

    The process sends PID 1 the `signal` when it gets SIGUSR1.
    """
    with container("--network", "none", image, "sh", "-c", UNTIL_TOLD.format(signal=signal)) as made:
        made.machine.attach_disk(ext4_drive(scratch, "disk"), "/disk")
        made.until_says("up")
        ask(made)
        error = made.machine.join(GONE_S)
        assert text(made.out) == "up\ntold\n"
    assert content_of(scratch / "disk.raw", "/notes") == "told\n"
    return str(error)


def sleep_in_vain(made: Container) -> str:
    """Tries every way to suspend the machine, as root; what was said about it."""
    script = "; ".join(f"echo {state} > /sys/power/state && echo slept" for state in SLEEPS)
    done = made.sh(script)
    assert (done.out, done.err.count("/sys/power/state")) == ("", len(SLEEPS))
    return done.err


@pytest.mark.parametrize(("signal", "reason"), [
    ("TERM", "a process in it asked PID 1 to stop"),
    ("INT", "Ctrl-Alt-Del was pressed"),  # what a kernel with a keyboard sends
    ("PWR", "the power is failing"),
])  # fmt: skip
def test_a_signal_to_pid_1(image: str, tmp_path: Path, signal: str, reason: str) -> None:
    """By root as Docker leaves it, which may reset nothing."""

    def ask(made: Container) -> None:
        assert made.primary is not None
        made.primary.signal("USR1").result(GONE_S)

    assert f"guest: powered off: {reason} (" in end_in_order(image, tmp_path, ask, signal)


def test_the_keys(image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Debian's kernel, which has a keyboard; and it can suspend, but not here."""
    monkeypatch.setenv("VCH_KERNEL", "debian-cloud")

    def ask(made: Container) -> None:
        assert sleep_in_vain(made).count("Read-only file system") == len(SLEEPS)
        made.machine._driver.monitor.execute("send-key", {"keys": CTRL_ALT_DEL})

    assert "guest: powered off: Ctrl-Alt-Del was pressed (" in end_in_order(image, tmp_path, ask)


def test_who_suspends_it_all_the_same_is_told(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the privilege to take the protection away: nothing would wake the machine, so it is ended."""
    monkeypatch.setenv("VCH_KERNEL", "debian-cloud")
    script = "umount /sys/power/state; echo mem > /sys/power/state"
    with container("--privileged", "--network", "none", image, "sh", "-c", script) as made:
        told = str(made.machine.join(GONE_S))
    assert "run container: guest: a process in it suspended the machine, and it was killed" in told


def test_what_ends_nothing(image: str) -> None:
    """Where the privilege is missing, or nobody listens; with any kernel, also one that cannot suspend."""
    with container("--network", "none", image, "sleep", "100000") as made:
        for command in ("poweroff -f", "reboot -f", "halt -f"):
            done = made.sh(command, capabilities=DEFAULT_CAPABILITIES)
            assert (done.code != 0, "not permitted" in done.err) == (True, True), command
        for command in ("kill 1", "kill -INT 1", "kill -PWR 1"):
            assert "not permitted" in made.sh(command, user="nobody").err, command
        # Busybox's signals to its own init.  In a container they are for the program that PID 1 would be elsewhere,
        # as nginx's to open its logs anew, and must not end it.
        assert made.sh("halt; poweroff").code == 0
        sleep_in_vain(made)
        assert made.machine.ping().monotonic_ns > 0
        assert made.primary is not None
        assert not made.primary.ended.done
