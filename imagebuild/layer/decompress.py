"""Decompresses a blob chunk by chunk: gzip with isal (several members too), zstd (several frames too), or nothing.

A chunk of output never has more than `OUTPUT_CHUNK` bytes, so that a bomb is seen before it goes off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import BinaryIO, cast

import zstandard
from isal import igzip_lib

from imagebuild.errors import LayerError

#: What is read from a source at once, and what comes out at once.  Large enough that Python's share is small, small
#: enough to stay in the processor's second-level cache on the way from one step to the next.
INPUT_CHUNK = 256 << 10
OUTPUT_CHUNK = 1 << 20
#: What a gzip member behind another gets first.
_SMALL_PORTION = 4 << 10

#: zstd frames ask for a window of history; the tool's own limit is 128 MiB.  Registries' layers need 8.
_ZSTD_MAX_WINDOW = 128 << 20

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: Skippable frames (a zstd:chunked layer may begin with one): 0x184D2A50 to ...5F.
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_LONGEST_MAGIC = 5


class Compression(Enum):
    """How a blob is compressed.  AUTO looks at its first bytes, since media types are often wrong."""

    AUTO = "auto"
    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


def detect(head: bytes) -> Compression:
    """The compression of a blob that begins with *head*.  Raises `LayerError` for one no layer may have."""
    if head.startswith(_GZIP_MAGIC):
        return Compression.GZIP
    if head.startswith(_ZSTD_MAGIC) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] & 0xF0 == 0x50):
        return Compression.ZSTD
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise LayerError(
                "decompress", "the layer", f"it is compressed with {name}", "push it again with gzip or zstd"
            )
    return Compression.NONE


def decompress(chunks: Iterator[bytes], media: Compression) -> Iterator[bytes]:
    """The content of the blob that *chunks* make up.  Raises `LayerError` if it is damaged or cut off."""
    head = b""
    while len(head) < _LONGEST_MAGIC and (chunk := next(chunks, b"")):
        head += chunk
    if media is Compression.AUTO:
        media = detect(head)
    rest = _prepend(head, chunks)
    if media is Compression.GZIP:
        return _gunzip(rest)
    if media is Compression.ZSTD:
        return _unzstd(rest)
    return rest


def _prepend(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from chunks


class _Source:
    """The blob as a file: read as much as is wanted, put back what was too much."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._waiting: deque[memoryview] = deque()

    def read(self, size: int) -> bytes:
        """At least one byte and at most *size*, or nothing at the end."""
        if not self._waiting:
            self.put_back(next(self._chunks, b""))
        if not self._waiting:
            return b""
        piece = self._waiting.popleft()
        if len(piece) > size:
            self._waiting.appendleft(piece[size:])
        return bytes(piece[:size])

    def put_back(self, data: bytes) -> None:
        """Have *data* come next."""
        if data:
            self._waiting.appendleft(memoryview(data))


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """One gzip member after the other; zeros after the last are padding, anything else is damage."""
    source = _Source(chunks)
    portion = INPUT_CHUNK
    while data := source.read(portion):
        if data[:1] == b"\0":
            _only_zeros(data, source)
            return
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        while True:
            try:
                out = member.decompress(data, OUTPUT_CHUNK)
            except igzip_lib.error as error:  # type: ignore[misc]  # its stub calls the class an instance
                raise _damaged(f"its gzip data is damaged: {error}") from None
            if out:
                yield out
            if member.eof:
                break
            data = b""
            if member.needs_input:
                data = source.read(portion)
                portion = min(2 * portion, INPUT_CHUNK)
                if not data:
                    raise _damaged("its gzip data ends too early")
        # A member hands back what is not its own.  Should members be tiny, little is to go back and forth.
        source.put_back(member.unused_data)
        portion = _SMALL_PORTION


def _only_zeros(data: bytes, source: _Source) -> None:
    while data:
        if data.strip(b"\0"):
            raise _damaged("something follows its gzip data")
        data = source.read(INPUT_CHUNK)


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """One zstd frame after the other.

    A decompression object would turn one small input into gigabytes of output; the stream reader obeys a limit.  It
    does not tell a stream that was cut off from one that ended: the tar reader and the digests do.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW)
    source = cast(BinaryIO, _Source(chunks))
    with decompressor.stream_reader(source, read_size=INPUT_CHUNK, read_across_frames=True) as reader:
        while True:
            try:
                out = reader.read(OUTPUT_CHUNK)
            except zstandard.ZstdError as error:
                raise _damaged(f"its zstd data is damaged: {error}") from None
            if not out:
                return
            yield out


def _damaged(cause: str) -> LayerError:
    return LayerError("decompress", "the layer", cause, "pull it again; if it stays so, push it again")
