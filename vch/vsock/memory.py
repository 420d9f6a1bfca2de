"""The guest's memory as this process sees it: shared mappings of what QEMU hands over.

A range that a guest names is never trusted: it lies within one region, or it is an error.  Views are slices of the
mapping, so nothing is copied, and the mapping goes when the last view of it does.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass

from vch.vsock.errors import VsockError

MOST_REGIONS = 8  # VHOST_MEMORY_BASELINE_NREGIONS of the vhost-user specification
_ADDRESSES = 1 << 64


@dataclass(frozen=True)
class Region:
    """A range of guest-physical addresses, the same range in QEMU's own addresses, and where it is in its file."""

    guest_address: int
    size: int
    user_address: int
    file_offset: int


class GuestMemory:
    """All regions of one guest."""

    def __init__(self, regions: list[tuple[Region, int]]) -> None:
        """Maps each region from the file descriptor beside it, which stays the caller's.  Raises VsockError."""
        if len(regions) > MOST_REGIONS:
            raise VsockError("memory table", f"{len(regions)} regions, at most {MOST_REGIONS}")
        mapped = [(region, memoryview(_map(region, fd))) for region, fd in regions]
        # The largest first: nearly every buffer is in it.
        self._mapped = sorted(mapped, key=lambda item: -item[0].size)

    def guest(self, address: int, size: int) -> memoryview:
        """A range of guest-physical addresses.  Raises VsockError if it is not all in one region."""
        for region, view in self._mapped:
            at = address - region.guest_address
            if at >= 0 and at + size <= region.size:
                return view[at : at + size]
        raise VsockError("guest address", f"{size} bytes at {address:#x} are no memory of the guest")

    def user(self, address: int, size: int) -> memoryview:
        """A range of QEMU's addresses.  Raises VsockError if it is not all in one region."""
        for region, view in self._mapped:
            at = address - region.user_address
            if at >= 0 and at + size <= region.size:
                return view[at : at + size]
        raise VsockError("ring address", f"{size} bytes at {address:#x} are no memory of the guest")


def _map(region: Region, fd: int) -> mmap.mmap:
    subject = f"memory region at {region.guest_address:#x}"
    if not region.size or max(region.guest_address, region.user_address) + region.size > _ADDRESSES:
        raise VsockError(subject, f"it cannot have {region.size:#x} bytes")
    if region.file_offset % mmap.ALLOCATIONGRANULARITY:
        raise VsockError(subject, f"its offset {region.file_offset:#x} is within a page")
    if not _cannot_shrink(fd):
        raise VsockError(subject, "its file is not sealed against shrinking",  # and a shrunk mapping is SIGBUS
                         "QEMU needs memory-backend-memfd with share=on")  # fmt: skip
    if region.file_offset + region.size > os.fstat(fd).st_size:
        raise VsockError(subject, "it reaches beyond the end of its file")
    try:
        return mmap.mmap(fd, region.size, offset=region.file_offset)
    except (OSError, ValueError, OverflowError) as error:
        raise VsockError(subject, f"it cannot be mapped: {error}", "the host has too little memory") from error


def _cannot_shrink(fd: int) -> bool:
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:  # not a memfd
        return False
