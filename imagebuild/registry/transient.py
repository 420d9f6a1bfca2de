"""Failures that may pass, and finding out what an exception is really about."""

from __future__ import annotations


class TransientError(Exception):
    """A failure that may pass: the connection broke, or the answer was cut short or stalled."""


def root_cause(error: BaseException) -> BaseException:
    """The innermost exception: requests wraps urllib3's, which wraps the socket's."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = [getattr(error, "reason", None), error.__cause__, *error.args, error.__context__]
        error = next((one for one in inner if isinstance(one, BaseException)), error)
    return error
