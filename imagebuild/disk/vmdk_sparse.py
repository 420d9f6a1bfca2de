"""Sparse VMDKs: the compressed kind that an upload (OVA, vSphere) wants, and the empty child of a sealed parent.

A sparse extent stores grains of 64 KiB.  A grain table has the places of 512 of them, the grain directory those of the
tables.  In a ``streamOptimized`` file grains are compressed and everything is written front to back, tables after the
grains they list, the directory and a second header at the end; each piece is announced by a marker.

Format: VMware "Virtual Disk Format 1.1".  Integers are little-endian, places are sectors of 512 bytes.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import IO

from isal import isal_zlib

from imagebuild.disk.gpt import SECTOR
from imagebuild.disk.vmdk import NO_PARENT, Extent, descriptor
from imagebuild.disk.vmdk_read import FlatExtent, read_descriptor
from imagebuild.errors import DiskError
from imagebuild.files import explained

GRAIN_SECTORS = 128
GRAIN = GRAIN_SECTORS * SECTOR
TABLE_ENTRIES = 512
COVERAGE = TABLE_ENTRIES * GRAIN  # bytes of disk that one grain table lists: 32 MiB
MAX_SIZE = 1 << 41  # places have 32 bits

_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
_DESCRIPTOR_AT, _DESCRIPTOR_SECTORS = 1, 20
_TABLE_SECTORS = TABLE_ENTRIES * 4 // SECTOR
_STREAM_START = 128  # sectors before the first grain: header and descriptor, rounded up to a grain
_DIRECTORY_AT_END = 0xFFFFFFFFFFFFFFFF
_NEWLINES = b"\n \r\n"  # to notice a transfer that "repaired" line ends
_VALID_NEWLINES, _REDUNDANT_DIRECTORY, _COMPRESSED, _MARKERS = 1, 2, 1 << 16, 1 << 17
_DEFLATE = 1
_ZEROS = bytes(GRAIN)
_ISAL_LEVELS = 3  # isal's own levels; above them, zlib's
_BATCH = 16  # grains per task: 1 MiB, so that handing over costs nothing beside compressing


class _Marker(IntEnum):
    END, TABLE, DIRECTORY, FOOTER = 0, 1, 2, 3


@dataclass(frozen=True)
class _Header:
    """What differs between sparse extents."""

    version: int
    flags: int
    capacity: int
    redundant_directory: int
    directory: int
    overhead: int
    compression: int

    def pack(self) -> bytes:
        return _HEADER.pack(
            b"KDMV",
            self.version,
            self.flags,
            self.capacity,
            GRAIN_SECTORS,
            _DESCRIPTOR_AT,
            _DESCRIPTOR_SECTORS,
            TABLE_ENTRIES,
            self.redundant_directory,
            self.directory,
            self.overhead,
            0,
            _NEWLINES,
            self.compression,
        )


def write_stream_optimized(
    extents: Sequence[FlatExtent], destination: Path, *, level: int = 3, workers: int = 0
) -> int:
    """Write the disk that ``extents`` make up as a compressed VMDK; its size in bytes.

    ``level``: 1 to 3 are isal's (fast), 4 to 9 zlib's (smaller).  ``workers`` is the number of processors if 0.  The
    same disk and level give the same bytes.  DiskError or StoreError says what went wrong; nothing is left then.
    """
    capacity = sum(extent.sectors for extent in extents)
    if capacity * SECTOR > MAX_SIZE:
        raise DiskError("write VMDK", destination.name, f"{capacity} sectors are more than a sparse VMDK takes")
    temporary = destination.with_name(f".{destination.name}.part")
    with explained("write VMDK", str(destination), output=True):
        try:
            with temporary.open("wb", buffering=1 << 20) as file:
                _Stream(file, capacity, destination.name).write(
                    _compressed(extents, level, workers or os.cpu_count() or 1)
                )
            temporary.rename(destination)
        finally:
            temporary.unlink(missing_ok=True)
    return destination.stat().st_size


class _Stream:
    """A stream-optimized VMDK on its way to a file."""

    def __init__(self, file: IO[bytes], capacity: int, name: str) -> None:
        self._file = file
        self._at = 0  # in sectors
        self._capacity = capacity
        self._directory: list[int] = []
        self._text = descriptor("streamOptimized", [Extent(name, capacity, "SPARSE")])

    def write(self, grains: Iterator[bytes]) -> None:
        """Write everything; ``grains`` are all grains of the disk compressed, empty for one of zeros."""
        self._put(self._header(_DIRECTORY_AT_END).pack())
        text = self._text.encode()
        self._put(text.ljust((_STREAM_START - 1) * SECTOR, b"\0"))
        table: list[int] = []
        for number, grain in enumerate(grains):
            table.append(self._at if grain else 0)
            if grain:
                self._put(struct.pack("<QI", number * GRAIN_SECTORS, len(grain)) + grain)
            if len(table) == TABLE_ENTRIES:
                self._put_table(table)
                table = []
        if table:
            self._put_table(table)
        self._put_end()

    def _header(self, directory: int) -> _Header:
        flags = _VALID_NEWLINES | _COMPRESSED | _MARKERS
        return _Header(3, flags, self._capacity, 0, directory, _STREAM_START, _DEFLATE)

    def _put(self, data: bytes) -> None:
        sectors = -(-len(data) // SECTOR)
        self._file.write(data.ljust(sectors * SECTOR, b"\0"))
        self._at += sectors

    def _put_marker(self, sectors: int, kind: _Marker) -> None:
        self._put(struct.pack("<QII", sectors, 0, kind))

    def _put_table(self, table: list[int]) -> None:
        if any(table):
            self._put_marker(_TABLE_SECTORS, _Marker.TABLE)
            self._directory.append(self._at)
            self._put(struct.pack(f"<{len(table)}I", *table).ljust(_TABLE_SECTORS * SECTOR, b"\0"))
        else:
            self._directory.append(0)

    def _put_end(self) -> None:
        directory = struct.pack(f"<{len(self._directory)}I", *self._directory)
        self._put_marker(-(-len(directory) // SECTOR), _Marker.DIRECTORY)
        place = self._at
        self._put(directory)
        self._put_marker(1, _Marker.FOOTER)
        self._put(self._header(place).pack())
        self._put_marker(0, _Marker.END)


def _compressed(extents: Sequence[FlatExtent], level: int, workers: int) -> Iterator[bytes]:
    """All grains of a disk, compressed by several threads, in order; a few batches ahead of their consumer."""
    compress = isal_zlib.compress if level <= _ISAL_LEVELS else zlib.compress

    def work(batch: bytes) -> list[bytes]:
        pieces = (batch[at : at + GRAIN].ljust(GRAIN, b"\0") for at in range(0, len(batch), GRAIN))
        return [b"" if piece == _ZEROS else compress(piece, level) for piece in pieces]

    ahead: deque[Future[list[bytes]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for batch in _batches(extents):
            ahead.append(pool.submit(work, batch))
            if len(ahead) > 2 * workers:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def _batches(extents: Sequence[FlatExtent]) -> Iterator[bytes]:
    """The disk's content in pieces of ``_BATCH`` grains."""
    held = bytearray()
    with ExitStack() as stack:
        for extent in extents:
            file = stack.enter_context(extent.path.open("rb", buffering=0))
            left = extent.sectors * SECTOR
            while left:
                data = file.read(min(left, _BATCH * GRAIN - len(held)))
                if not data:
                    raise DiskError("read disk", str(extent.path), "is shorter than its disk says")
                held += data
                left -= len(data)
                if len(held) == _BATCH * GRAIN:
                    yield bytes(held)
                    held.clear()
    if held:
        yield bytes(held)


def write_delta(parent: Path, destination: Path) -> None:
    """Write an empty child of the disk ``parent``: what is written goes to the child, all else is read from the parent.

    The child holds its parent's content ID, so a parent that is written to afterwards makes it unreadable: ``seal`` it
    first.  The parent is found relative to the child, so both may move together.
    """
    of = read_descriptor(parent)
    if of.sectors * SECTOR > MAX_SIZE:
        raise DiskError("write delta VMDK", str(parent), f"{of.sectors} sectors are more than a sparse VMDK takes")
    tables = -(-of.sectors * SECTOR // COVERAGE)
    directory_sectors = -(-tables * 4 // SECTOR)
    redundant = _DESCRIPTOR_AT + _DESCRIPTOR_SECTORS
    directory = redundant + directory_sectors + tables * _TABLE_SECTORS
    end = directory + directory_sectors + tables * _TABLE_SECTORS
    overhead = -(-end // GRAIN_SECTORS) * GRAIN_SECTORS
    header = _Header(1, _VALID_NEWLINES | _REDUNDANT_DIRECTORY, of.sectors, redundant, directory, overhead, 0)
    hint = os.path.relpath(parent.absolute(), destination.absolute().parent)
    extents = [Extent(destination.name, of.sectors, "SPARSE")]
    text = descriptor("monolithicSparse", extents, parent_cid=of.content_id, parent_hint=hint).encode()
    if of.content_id == NO_PARENT or len(text) > _DESCRIPTOR_SECTORS * SECTOR:
        raise DiskError("write delta VMDK", str(parent), "its content ID or its path is none that a child can hold")
    with explained("write delta VMDK", str(destination), output=True), destination.open("xb") as file:
        file.write(header.pack())
        file.write(text)
        for place in (redundant, directory):
            first = place + directory_sectors
            file.seek(place * SECTOR)
            file.write(struct.pack(f"<{tables}I", *range(first, first + tables * _TABLE_SECTORS, _TABLE_SECTORS)))
        file.truncate(overhead * SECTOR)


def seal(disk: Path) -> None:
    """Take away everyone's permission to write a disk, descriptor and files: the parent of deltas must not change."""
    for path in {disk, *(extent.path for extent in read_descriptor(disk).flat)}:
        path.chmod(path.stat().st_mode & ~0o222)
