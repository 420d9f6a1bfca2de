"""A stream of chunks, read by exact counts without copying what need not be copied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NoReturn

from imagebuild.errors import LayerError


class ByteStream:
    """Hands out slices of the chunks of *chunks*: ``bytes`` for headers, ``memoryview`` for file data.

    A view keeps its whole chunk alive, so whoever holds views for long must copy them.  Raises `LayerError` when the
    stream ends inside what was asked for.
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
        """The next *count* bytes, copied."""
        data = self.up_to(count)
        if len(data) < count:
            self._ended(count - len(data))
        return data

    def up_to(self, count: int) -> bytes:
        """The next *count* bytes, copied; fewer only where the stream ends."""
        stop = self._at + count
        if stop <= self._end:
            data = self._chunk[self._at : stop]
            self._at = stop
            return data
        parts = []
        while count and (self._at < self._end or self._refill()):
            part = self._chunk[self._at : self._at + count]
            self._at += len(part)
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def pieces(self, count: int) -> Iterable[memoryview]:
        """The next *count* bytes as views, one for each chunk they lie in."""
        start = self._at
        stop = start + count
        if stop <= self._end:
            self._at = stop
            return (self._view[start:stop],)
        return self._pieces_of_several(count)

    def _pieces_of_several(self, count: int) -> Iterator[memoryview]:
        while count:
            if self._at >= self._end and not self._refill():
                self._ended(count)
            start = self._at
            stop = min(start + count, self._end)
            self._at = stop
            count -= stop - start
            yield self._view[start:stop]

    def skip_to(self, offset: int) -> None:
        """Drop what comes before *offset*."""
        count = offset - self._before - self._at
        while count > self._end - self._at:
            count -= self._end - self._at
            self._at = self._end
            if not self._refill():
                self._ended(count)
        self._at += count

    def drain(self) -> None:
        """Drop everything that is left, so that whoever counts or hashes the chunks sees them all."""
        self._at = self._end
        while self._refill():
            self._at = self._end

    def _ended(self, missing: int) -> NoReturn:
        raise LayerError(
            "read the tar archive",
            f"byte {self.offset}",
            f"the archive ends {missing} bytes too early",
            "pull it again: it was cut off",
        )
