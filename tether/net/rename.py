"""Changing hosts and resolv.conf while programs read them.

The files are bound into the container, so they keep their inode.  The new content is written in one go over the old,
made as long as that with empty lines, and then cut: a reader sees the old file or the new one, with empty lines below.
"""

import os

from tether.kernel.files import SMALL

_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC


def rewrite(path: str, content: bytes) -> None:
    """Replaces what a file says."""
    handle = os.open(path, os.O_WRONLY | _NO_LINK)
    try:
        os.pwrite(handle, content.ljust(min(os.fstat(handle).st_size, SMALL), b"\n"), 0)
        os.ftruncate(handle, len(content))
    finally:
        os.close(handle)


def merged(now: bytes, ours_before: bytes, ours: bytes) -> bytes:
    """What a file shall say that said `ours_before` once and `now` today: our new lines, and then those that somebody
    in the container has added."""
    known = set(ours_before.splitlines()) | set(ours.splitlines())
    added = [line for line in now.splitlines() if line not in known and line.strip()]
    return ours + b"".join(line + b"\n" for line in added)
