"""What all tests share: they are interrupted as programs in a terminal are, wherever they run."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def ordinary_interrupts() -> Iterator[None]:
    """A shell starts its background jobs with SIGINT and SIGQUIT ignored, and children would inherit that."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGQUIT: signal.signal(signal.SIGQUIT, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
