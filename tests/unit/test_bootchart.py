"""The boot chart: two clocks on one line, sums, the picture."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest

from tether.link.messages import Phase, Ready, Started
from tether.steps import Steps, now_us
from vch.command.bootchart import Moments, Part, guest_zero, spans, table, totals, zero_of_pong
from vch.command.bootchart_svg import TICKS, svg, tick_ms
from vch.command.profile import Profile
from vch.errors import MachineError

PHASES = (
    Phase(name="start interpreter", start_us=500_000, took_us=100_000),
    Phase(name="import agent", start_us=600_000, took_us=50_000),
    Phase(name="take identity", start_us=700_000, took_us=1_000),
    Phase(name="start session", start_us=701_000, took_us=9_000),
)
MOMENTS = Moments(began=100.0, machine=100.2, guest_zero=100.3, first_output=101.1)


def test_every_moment_belongs_to_one_span() -> None:
    line = spans(MOMENTS, PHASES)
    assert [span.name for span in line] == [
        "prepare", "QEMU and firmware", "kernel", "start interpreter", "import agent", "hello, spec", "take identity",
        "start session", "first output",
    ]  # fmt: skip
    for before, after in itertools.pairwise(line):
        assert after.start == pytest.approx(before.end)
    assert line[-1].end == pytest.approx(1.1)
    assert totals(line)[Part.KERNEL] == pytest.approx(0.5)
    assert sum(totals(line).values()) == pytest.approx(1.1)


def test_without_output_it_ends_with_the_start() -> None:
    silent = Moments(100.0, 100.2, 100.3, None)
    assert spans(silent, PHASES)[-1].name == "start session"
    assert [span.name for span in spans(silent, ())] == ["prepare", "QEMU and firmware"]


def test_when_the_guests_clock_began() -> None:
    assert guest_zero(50.0, PHASES) == pytest.approx(49.29)
    assert zero_of_pong(50.0, 50.2, 3_000_000_000) == pytest.approx(47.1)


def test_the_table_ends_with_the_sums() -> None:
    lines = table(spans(MOMENTS, PHASES)).splitlines()
    assert lines[-1].startswith("total 1100 ms: host 200, firmware 100, kernel 500, runtime 100, imports 50, ")
    assert len(lines) == len(spans(MOMENTS, PHASES)) + 2


def test_the_picture_is_xml_with_a_bar_for_each_span() -> None:
    line = spans(MOMENTS, PHASES)
    picture = svg(line, "vch run a<b&c")
    assert picture == svg(line, "vch run a<b&c")
    bars = ElementTree.fromstring(picture).findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == 1 + len(line) + len(totals(line))


@pytest.mark.parametrize("seconds", [0.001, 0.9, 7.7, 100.0])
def test_there_are_few_ticks(seconds: float) -> None:
    assert seconds * 1000 / tick_ms(seconds) <= TICKS


def test_a_machine_that_is_gone_leaves_the_estimate(tmp_path: Any) -> None:
    def gone() -> None:
        raise MachineError("ping", "machine", "it is gone")

    profile = Profile(wanted=False, picture=str(tmp_path / "none" / "boot.svg"))
    assert profile.show("nothing was started") == []
    profile.machine_starts()
    profile.ready(Ready(version="1", kernel="6", phases=PHASES[:2]))
    profile.started(Started(pid=7, phases=PHASES[2:]))
    profile.over(cast("Any", SimpleNamespace(ping=gone)), cast("Any", SimpleNamespace(first_output=None)))
    lines = profile.show("title")
    assert lines[-2].startswith("total ")
    assert "No such file" in lines[-1]


def test_who_does_not_ask_gets_nothing() -> None:
    profile = Profile(wanted=False, picture=None)
    profile.ready(Ready(version="1", kernel="6", phases=PHASES))
    assert profile.show("title") == []


def test_the_agent_counts_its_own_start() -> None:
    steps = Steps()
    steps.start_up(now_us())
    assert steps.taken()[-1].name == "import agent"
