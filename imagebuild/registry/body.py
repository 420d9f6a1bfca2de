"""Reading an answer's body: bounded in size, refusing to stall, in large pieces.

``read1`` is used throughout: it returns what one system call brought, so that a server which sends a byte a minute is
seen at once, where a plain ``read`` of a large piece would sit inside the library until the piece is full.  Bodies are
never decoded, because digests are those of the bytes as stored.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import requests
from urllib3.exceptions import HTTPError

from imagebuild.registry.transient import TransientError, root_cause

# Smallest piece handed on, but for the last.  Large enough that the consumer's cost per piece vanishes.
CHUNK = 256 << 10
# Slower than this, over a whole stall timeout, counts as standing still.
SLOWEST_BYTES_PER_S = 256
# A new connection costs a few round trips: an unread rest that takes longer is better left unread.
_WORTH_READING = 64 << 10
_WORTH_WAITING_S = 1.0


def read_limited(response: requests.Response, limit: int, stall_timeout_s: float) -> bytes:
    """The whole body, at most ``limit`` bytes and one more, which tells the caller that it is too long.

    Raises TransientError if it breaks or stalls.
    """
    try:
        return b"".join(pieces(response, limit + 1, stall_timeout_s))
    finally:
        response.close()


def discard(response: requests.Response) -> None:
    """Be done with an answer; its connection is kept for the next request if the rest of the body is short."""
    with contextlib.suppress(TransientError):
        for _ in pieces(response, _WORTH_READING, _WORTH_WAITING_S):
            pass
    response.close()


def pieces(response: requests.Response, limit: int, stall_timeout_s: float) -> Iterator[bytes]:
    """The body in pieces of at least 256 KiB, ending after ``limit`` bytes or at its end.

    Raises TransientError if it breaks or stalls.  Only time spent waiting for the server counts as stalling, not what
    the consumer takes.
    """
    left = limit
    waited, arrived = 0.0, 0
    gathered: list[bytes] = []
    size = 0
    while left > 0:
        began = time.monotonic()
        try:
            data = _read1(response, min(left, CHUNK))
        except TransientError:
            if gathered:
                yield b"".join(gathered)  # what has arrived need not be sent again
            raise
        waited += time.monotonic() - began
        if not data:
            break
        left -= len(data)
        arrived += len(data)
        size += len(data)
        gathered.append(data)
        if waited > stall_timeout_s:
            if arrived < waited * SLOWEST_BYTES_PER_S:
                raise TransientError(f"stalled: {arrived} bytes in {waited:.0f} s")
            waited, arrived = 0.0, 0
        if size >= CHUNK:
            yield gathered[0] if len(gathered) == 1 else b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)


def _read1(response: requests.Response, amount: int) -> bytes:
    try:
        data: bytes | None = response.raw.read1(amount, decode_content=False)
    except (HTTPError, OSError, ValueError) as error:  # ValueError: a chunk length that is no number
        root = root_cause(error)
        detail = "stalled" if isinstance(root, TimeoutError) else str(root)[:200] or type(root).__name__
        raise TransientError(f"the answer broke off: {ascii(detail)[1:-1]}") from error
    return data or b""
