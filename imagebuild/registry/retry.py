"""When to try again, and how long to wait before: the plan (pure) and the loop that follows it.

Tried again: what may pass by itself (resets, short answers, 408, 429, 5xx).  Never: what will not (401, 403, 404, a
certificate nobody vouches for).  Waits grow by doubling and are drawn at random up to that bound, so that a hundred
clients that lost the same registry do not come back in step.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import requests

from imagebuild.errors import RegistryError
from imagebuild.registry.body import discard
from imagebuild.registry.settings import RegistrySettings
from imagebuild.registry.transient import TransientError

# 408 request timeout, 429 too many requests, 500-504: the server or a proxy before it had a bad moment.
RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})

FIRST_PAUSE_S = 0.25  # a connection that was reset by a restart is usually back by then
LONGEST_PAUSE_S = 10.0
_MAX_DATE_CHARACTERS = 64


@dataclass(frozen=True)
class RetryPolicy:
    """How patient to be.  ``attempts`` includes the first; times in seconds."""

    attempts: int = 5
    first_pause_s: float = FIRST_PAUSE_S
    longest_pause_s: float = LONGEST_PAUSE_S
    max_retry_after_s: float = 60.0

    @classmethod
    def of(cls, settings: RegistrySettings) -> RetryPolicy:
        """The policy that the user's settings ask for."""
        return cls(attempts=max(1, settings.attempts), max_retry_after_s=settings.max_retry_after_s)

    def pause(self, failures: int, retry_after_s: float | None, fraction: float) -> float | None:
        """Seconds to wait after the ``failures``-th failure in a row, None to give up.

        ``fraction`` is a random number in 0..1.  A server's own wish (Retry-After) counts as the least to wait; one
        that is over the bound ends the matter.
        """
        if failures >= self.attempts:
            return None
        if retry_after_s is not None and retry_after_s > self.max_retry_after_s:
            return None
        bound = min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(failures - 1, 32))
        # At least half of the bound, or a long series of small draws would hammer a server that is down.
        drawn = bound * (0.5 + fraction / 2)
        return drawn + (retry_after_s or 0.0)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait by a Retry-After header: a number, or a date (RFC 9110, 10.2.3); None if it says nothing.

    ``now`` is the time of day in seconds since 1970.
    """
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    try:
        moment = email.utils.parsedate_to_datetime(value[:_MAX_DATE_CHARACTERS])
        return max(0.0, moment.timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


@dataclass(frozen=True)
class Retrier:
    """Runs something until it works or the policy gives up.  ``sleep`` and ``draw`` are for tests to replace."""

    policy: RetryPolicy
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[], float] = random.random

    def run(self, step: str, subject: str, attempt: Callable[[], requests.Response]) -> requests.Response:
        """The first answer of ``attempt`` whose status is not worth another try; RegistryError on giving up."""
        failures = 0
        while True:
            retry_after = None
            try:
                response = attempt()
            except TransientError as error:
                cause = str(error)
            else:
                if response.status_code not in RETRYABLE_STATUS:
                    return response
                retry_after = parse_retry_after(response.headers.get("Retry-After"), time.time())
                cause = f"the server answers {response.status_code} {response.reason or ''}".rstrip()
                discard(response)
            failures += 1
            self.wait(step, subject, cause, failures, retry_after)

    def wait(self, step: str, subject: str, cause: str, failures: int, retry_after_s: float | None = None) -> None:
        """Sleep before the next try; RegistryError when there is to be none."""
        pause = self.policy.pause(failures, retry_after_s, self.draw())
        if pause is None:
            raise RegistryError(step, subject, *self._verdict(cause, failures, retry_after_s))
        self.sleep(pause)

    def _verdict(self, cause: str, failures: int, retry_after_s: float | None) -> tuple[str, str]:
        if retry_after_s is not None and retry_after_s > self.policy.max_retry_after_s:
            return f"{cause} and asks to wait {retry_after_s:.0f} s", "log in for a higher limit, or try again then"
        tries = f", {failures} times in a row" if failures > 1 else ""
        return f"{cause}{tries}", "try again later; the registry or the network is unwell"
