"""Locks between processes that the kernel drops when their holder dies, however it dies.

All are flock(2) locks: they belong to an open file, so threads of one process exclude one another as processes do, and
a child that inherits the descriptor keeps the lock alive for as long as it lives.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.05  # a blocked flock() cannot be cancelled, so it is asked for again and again


def still_there(fd: int, path: Path) -> bool:
    """Whether ``path`` still names the file that ``fd`` has open."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def try_lock(path: Path, *, shared: bool = False, create: bool = True) -> int | None:
    """An open descriptor that holds the lock on ``path``, or None if another has it or ``path`` is not there.

    The file is made if ``create``; a directory can be locked too.
    """
    flags = os.O_CLOEXEC | (os.O_RDWR | os.O_CREAT if create else os.O_RDONLY)
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        if create:
            raise
        return None
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        # Someone may have deleted the file between open and flock: a lock on a deleted file protects nothing.
        if still_there(fd, path):
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None


@contextmanager
def locked(path: Path, *, shared: bool = False, waiting: Callable[[], None] | None = None) -> Iterator[int]:
    """Hold the lock on ``path``; ``waiting`` is called at each vain try, and may raise to give up."""
    while (fd := try_lock(path, shared=shared)) is None:
        if waiting is not None:
            waiting()
        time.sleep(_POLL_S)
    try:
        yield fd
    finally:
        os.close(fd)
