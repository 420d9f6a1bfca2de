"""Restart policies and health checks: what is decided, without a clock or a process."""

from __future__ import annotations

from tether.link.errors import CongestedError
from tether.link.late_messages import HEALTHY, STARTING, UNHEALTHY, Probe, Restarting
from tether.link.messages import Exited, Signalled
from tether.process.health import KEPT, Verdict
from tether.process.restarts import LONGEST_MS, Restarts
from tether.process.told import LatestEvent
from tether.spec import HealthCheck, Restart

FAILED, DONE = Exited(code=3), Exited(code=0)


def _waits(policy: Restart, *ends: tuple[Exited | Signalled, float]) -> list[int | None]:
    restarts = Restarts(policy, None)  # type: ignore[arg-type]  # tells nobody
    told = [restarts.after(state, ran, False) for state, ran in ends]
    return [event.after_ms if event else None for event in told]


class TestRestarts:
    def test_the_wait_doubles_up_to_a_minute(self) -> None:
        waits = _waits(Restart(always=True), *[(FAILED, 1.0)] * 12)
        assert waits == [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, LONGEST_MS, LONGEST_MS]

    def test_it_begins_anew_when_the_process_has_lasted(self) -> None:
        assert _waits(Restart(always=True), (FAILED, 1), (FAILED, 9.9), (DONE, 10.0), (DONE, 0)) == [100, 200, 100, 200]

    def test_on_failure(self) -> None:
        assert _waits(Restart(), (FAILED, 0), (Signalled(number=9), 0), (DONE, 0)) == [100, 200, None]

    def test_not_more_often_than_allowed(self) -> None:
        assert _waits(Restart(retries=2), *[(FAILED, 0)] * 3) == [100, 200, None]

    def test_what_is_told(self) -> None:
        restarts = Restarts(Restart(always=True), None)  # type: ignore[arg-type]
        assert restarts.after(Signalled(number=9), 1, True) == Restarting(
            state=Signalled(number=9), count=1, after_ms=100, oom_killed=True)


def _probe(code: int) -> Probe:
    return Probe(start_ns=1, end_ns=2, code=code)


class TestVerdict:
    def test_unhealthy_after_so_many_failures_in_a_row_and_back(self) -> None:
        verdict = Verdict(HealthCheck(args=(b"x",), retries=2))
        seen = []
        for code in (1, 0, 1, 1, -1, 0):
            verdict.take(_probe(code), 10_000)
            seen.append((verdict.status, verdict.failures))
        assert seen == [(STARTING, 1), (HEALTHY, 0), (HEALTHY, 1), (UNHEALTHY, 2), (UNHEALTHY, 3), (HEALTHY, 0)]

    def test_failures_while_it_starts_do_not_count(self) -> None:
        verdict = Verdict(HealthCheck(args=(b"x",), retries=1, start_period_ms=1000))
        verdict.take(_probe(1), 999)
        assert (verdict.status, verdict.failures) == (STARTING, 0)
        verdict.take(_probe(1), 1000)
        assert verdict.status == UNHEALTHY

    def test_but_they_do_once_it_was_healthy(self) -> None:
        verdict = Verdict(HealthCheck(args=(b"x",), retries=1, start_period_ms=1000))
        verdict.take(_probe(0), 1)
        verdict.take(_probe(1), 2)
        assert verdict.status == UNHEALTHY

    def test_checks_are_closer_together_while_it_starts(self) -> None:
        verdict = Verdict(HealthCheck(args=(b"x",), interval_ms=9000, start_period_ms=1000, start_interval_ms=100))
        assert (verdict.next_ms(0), verdict.next_ms(1000)) == (100, 9000)
        verdict.take(_probe(0), 1)
        assert verdict.next_ms(2) == 9000

    def test_the_last_results_are_kept(self) -> None:
        verdict = Verdict(HealthCheck(args=(b"x",)))
        for code in range(KEPT + 3):
            verdict.take(_probe(code), 0)
        assert [probe.code for probe in verdict.event().log] == [3, 4, 5, 6, 7]


class _Link:
    """An endpoint of which the test says whether the peer takes anything, and a reactor that waits for no time."""

    def __init__(self) -> None:
        self.drained, self.full = True, False
        self.sent: list[object] = []
        self.later: list[object] = []
        self.mux = self

    def stream(self, _number: int) -> _Link:
        return self

    def notify(self, event: object) -> None:
        if self.full:
            raise CongestedError
        self.sent.append(event)

    def call_later(self, _seconds: float, callback: object) -> None:
        self.later.append(callback)

    def pass_time(self) -> None:
        due, self.later = self.later, []
        for callback in due:
            assert callable(callback)
            callback()


class TestLatestEvent:
    def test_it_replaces_what_nobody_has_taken(self) -> None:
        link = _Link()
        events = LatestEvent(link, link)  # type: ignore[arg-type]
        events.tell(_probe(1))
        link.drained = False
        for code in (2, 3, 4):
            events.tell(_probe(code))
            link.pass_time()
        assert len(link.later) == 1
        assert link.sent == [_probe(1)]
        link.drained = True
        link.pass_time()
        assert link.sent == [_probe(1), _probe(4)]
        assert not link.later

    def test_it_goes_before_what_must_not_overtake_it(self) -> None:
        link = _Link()
        link.drained = False
        events = LatestEvent(link, link)  # type: ignore[arg-type]
        events.tell(_probe(1))
        assert link.sent == []
        events.hurry()
        assert link.sent == [_probe(1)]
        link.drained = True
        link.pass_time()
        assert link.sent == [_probe(1)]

    def test_it_waits_for_room(self) -> None:
        link = _Link()
        link.full = True
        events = LatestEvent(link, link)  # type: ignore[arg-type]
        events.tell(_probe(1))
        link.full = False
        link.pass_time()
        assert link.sent == [_probe(1)]
