"""The arithmetic of the memory bench."""

from __future__ import annotations

import pytest

from tests.bench.boot_memory import least, lost_kib


def test_what_is_lost() -> None:
    meminfo = "MemTotal:  115060 kB\nMemFree:  85052 kB\nMemAvailable:  84256 kB\n"
    assert lost_kib(meminfo, 128) == (131072 - 115060, 131072 - 84256)


@pytest.mark.parametrize("answer", range(28, 129, 4))
def test_bisection(answer: int) -> None:
    assert least(lambda mib: mib >= answer, 24, 128, 4) == answer
