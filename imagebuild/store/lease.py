"""Leases: how a process says that it needs something of the store, until it ends, however it ends.

A lease is a file in ``leases/`` that lists names, and that its owner keeps locked.  The lock goes when the last process
that has the descriptor open dies, so nothing has to be cleaned up after a kill -9; the collector deletes what is not
locked.  Hand ``fileno()`` to a child (``pass_fds``) and the lease lives as long as the child does: that is how a VM
keeps its image although the program that started it is gone.

A workspace is the same thing for unfinished work: a locked directory under ``tmp/``.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from imagebuild.files import explained
from imagebuild.locks import try_lock


class Needs(NamedTuple):
    """What may not be collected: names of layer files, of disk folders, and digests of blobs and manifests."""

    layers: frozenset[str] = frozenset()
    disks: frozenset[str] = frozenset()
    blobs: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.layers | other.layers, self.disks | other.disks, self.blobs | other.blobs, self.images | other.images
        )

    @staticmethod
    def union(many: Iterable[Needs]) -> Needs:
        """All of them together."""
        found = Needs()
        for one in many:
            found |= one
        return found


class Lease:
    """A claim on things in the store; a context manager.  Make one with ``Store.lease`` or ``Store.pin``."""

    def __init__(self, path: Path, needs: Needs) -> None:
        self._path = path
        self.needs = needs
        text = json.dumps({name: sorted(values) for name, values in needs._asdict().items()})
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            os.write(self._fd, text.encode())
        except OSError:
            self.release()
            raise

    def fileno(self) -> int:
        """The descriptor to pass to a child that is to keep the lease alive."""
        return self._fd

    def detach(self) -> None:
        """Close our own descriptor and leave the lease to the children that have it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def release(self) -> None:
        """End the lease.  A child that inherited it keeps nothing from now on."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def new_name() -> str:
    """A name that nobody else has."""
    return os.urandom(12).hex()


def living(folder: Path) -> Iterator[Needs]:
    """The needs of all leases in ``folder`` whose owners live; the others are deleted."""
    for path in sorted(folder.iterdir()):
        fd = try_lock(path, create=False)
        if fd is not None:
            path.unlink(missing_ok=True)
            os.close(fd)
        elif path.exists():
            yield _read(path)


def _read(path: Path) -> Needs:
    try:
        document = json.loads(path.read_bytes())
        return Needs(**{name: frozenset(values) for name, values in document.items()})
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        # Made without the store's lock, or by a version with other fields; the collector must not guess what it needs,
        # and a torn one cannot be: leases are written and collected under the store's lock.
        return Needs()


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """A directory of one's own below ``folder``, deleted at the end, or by the collector if we do not get that far."""
    import shutil

    path = folder / new_name()
    with explained("make work folder", str(folder)):
        path.mkdir()
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(fd)


def clear_abandoned(folder: Path) -> int:
    """Delete the workspaces whose owners are dead; how many there were."""
    import shutil

    count = 0
    for path in sorted(folder.iterdir()):
        fd = try_lock(path, create=False)
        if fd is not None:
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True) if path.is_file() else None
            os.close(fd)
            count += 1
    return count
