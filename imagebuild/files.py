"""Files that are either whole or not there, also after a kill or a power cut."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagebuild.errors import StoreError

# What to do where the store's own files are in trouble, and where files that the user named are.
_REMEDIES = {
    errno.ENOSPC: "free some space (imagebuild gc), or set VCH_HOME to a larger disk",
    errno.EDQUOT: "free some space (imagebuild gc), or set VCH_HOME to a larger disk",
    errno.EACCES: "the folder belongs to another user: set VCH_HOME to one of your own",
    errno.EPERM: "the folder belongs to another user: set VCH_HOME to one of your own",
    errno.ENOENT: "set VCH_HOME to a folder that can be made",
    errno.ENOTDIR: "set VCH_HOME to a folder that can be made",
    errno.EROFS: "the disk is read-only: set VCH_HOME to a folder elsewhere",
}
_OUTPUT_REMEDIES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EACCES: "write to a folder of your own",
    errno.EPERM: "write to a folder of your own",
    errno.ENOENT: "make the folder first",
    errno.ENOTDIR: "make the folder first",
    errno.EROFS: "the disk is read-only: write to another one",
    errno.EEXIST: "delete it first, or choose another name",
    errno.EISDIR: "give the name of a file",
}


@contextmanager
def explained(step: str, subject: str, *, output: bool = False) -> Iterator[None]:
    """Turn an OSError of the block into a StoreError that says what to do about it.

    ``output`` says that the block writes where the user wants it, and not into the store.
    """
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        if error.filename and str(error.filename) != subject:
            cause = f"{error.filename}: {cause}"
        remedies = _OUTPUT_REMEDIES if output else _REMEDIES
        raise StoreError(step, subject, cause, remedies.get(error.errno or 0, "")) from error


def sync_file(path: Path) -> None:
    """Have the content of ``path`` on the disk before this returns."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name: content first, then the name, so that the name never stands for a torso."""
    sync_file(temporary)
    temporary.rename(path)
    sync_file(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Write or replace ``path`` in one step."""
    temporary = path.with_name(f".{path.name[:100]}.{os.urandom(6).hex()}{TEMPORARY_SUFFIX}")
    try:
        temporary.write_bytes(content)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


TEMPORARY_SUFFIX = ".part"  # of what a killed ``write_whole`` leaves behind
