"""A stream of chunks, read by exact counts without copying what need not be copied."""

from __future__ import annotations

from collections.abc import Iterator


class EndOfStream(Exception):
    """The stream ended inside something; ``missing`` bytes did not come."""

    def __init__(self, missing: int) -> None:
        super().__init__(missing)
        self.missing = missing


class ByteStream:
    """Hands out slices of the chunks of *chunks*: ``bytes`` for headers, ``memoryview`` for file data.

    A view keeps its whole chunk alive, so whoever holds views for long must copy them.
    """

    __slots__ = ("_at", "_before", "_chunk", "_chunks", "_end", "_view")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._view = memoryview(b"")
        self._at = self._end = 0
        self._before = 0

    @property
    def offset(self) -> int:
        """Bytes handed out so far."""
        return self._before + self._at

    def _refill(self) -> bool:
        """Move on to the next non-empty chunk; False at the end of the stream."""
        for chunk in self._chunks:
            if chunk:
                self._before += self._end
                self._chunk, self._view = chunk, memoryview(chunk)
                self._at, self._end = 0, len(chunk)
                return True
        return False

    def exact(self, count: int) -> bytes:
        """The next *count* bytes, copied; fewer only if the stream ends first."""
        stop = self._at + count
        if stop <= self._end:
            got = self._chunk[self._at : stop]
            self._at = stop
            return got
        parts = []
        while count and (self._at < self._end or self._refill()):
            part = self._chunk[self._at : self._at + count]
            self._at += len(part)
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def pieces(self, count: int) -> Iterator[memoryview]:
        """The next *count* bytes as views, one for each chunk they lie in.  Raises `EndOfStream`."""
        while count:
            if self._at >= self._end and not self._refill():
                raise EndOfStream(count)
            start = self._at
            stop = min(start + count, self._end)
            self._at = stop
            count -= stop - start
            yield self._view[start:stop]

    def skip(self, count: int) -> None:
        """Drop the next *count* bytes.  Raises `EndOfStream`."""
        while count > self._end - self._at:
            count -= self._end - self._at
            self._at = self._end
            if not self._refill():
                raise EndOfStream(count)
        self._at += count

    def drain(self) -> None:
        """Drop everything that is left, so that whoever counts or hashes the chunks sees them all."""
        self._at = self._end
        while self._refill():
            self._at = self._end
