"""A writer of cpio archives in the one format that the kernel unpacks as an initramfs: "newc".

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.  Every entry belongs to root and has
the same time stamp, so that the same tree always gives the same bytes; device nodes need no privilege, since nothing
is made on the host's disk.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
ALIGNMENT = 4  # headers and contents begin on multiples of it
MAX_FILE_BYTES = 0xFFFF_FFFF  # sizes are eight hexadecimal digits


@dataclass(frozen=True)
class Entry:
    """One inode.  `path` is relative ("usr/bin"), `mode` has the file type; `content` is a symlink's target too."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, mode: int = 0o755) -> Entry:
    """A directory; its parents need entries of their own before it."""
    return Entry(path, stat.S_IFDIR | mode)


def file(path: str, content: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path, stat.S_IFREG | mode, content)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device node."""
    return Entry(path, stat.S_IFCHR | mode, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of `entries`, in path order so that parents come first; missing parents are added.

    Raises ValueError for an absolute path, a path that leaves the root, two entries of one path, or a file too large.
    """
    complete = _with_parents(list(entries))
    parts = [_packed(number, complete[path]) for number, path in enumerate(sorted(complete), 1)]
    return b"".join((*parts, _packed(0, Entry(TRAILER, 0))))


def _with_parents(entries: list[Entry]) -> dict[str, Entry]:
    complete: dict[str, Entry] = {}
    for entry in entries:
        if not entry.path or any(part in ("", ".", "..") for part in entry.path.split("/")):
            raise ValueError(f"not a relative path: {entry.path!r}")
        if entry.path in complete:
            raise ValueError(f"two entries for {entry.path!r}")
        if len(entry.content) > MAX_FILE_BYTES:
            raise ValueError(f"too large for cpio: {entry.path!r}")
        complete[entry.path] = entry
    for path in list(complete):
        parts = path.split("/")
        for count in range(1, len(parts)):
            parent = "/".join(parts[:count])
            complete.setdefault(parent, directory(parent))
    return complete


def _packed(number: int, entry: Entry) -> bytes:
    """Header, name and content of one entry, each padded."""
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    header = MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return _padded(header) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
