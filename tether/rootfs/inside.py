"""Paths inside the container, from outside of it.

PID 1 keeps its own root and never opens a path through the container's: a symbolic link there must not lead out.  Every
path goes through openat2(2) with RESOLVE_IN_ROOT on a descriptor of the container's root, and what is then mounted is
mounted on that descriptor's entry in /proc/self/fd, which cannot be swapped in between.
"""

import errno
import os

from tether.faults import TetherError
from tether.kernel.syscalls import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, mount, openat2
from tether.link.record import Record

_RESOLVE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_FOLDER = os.O_PATH | os.O_DIRECTORY


class Mount(Record):
    """What goes where inside the container: `source` is a device, or what is bound, and may be left out elsewhere."""

    path: bytes
    kind: str = ""
    source: str = ""
    flags: int = 0
    options: str = ""


def open_inside(root: int, path: bytes, flags: int = os.O_PATH) -> int:
    """A descriptor of what `path` is inside `root`, symbolic links resolved there.  Raises OSError."""
    return openat2(root, path.lstrip(b"/") or b".", flags, _RESOLVE)


def make_folder(root: int, path: bytes, mode: int = 0o755) -> int:
    """A descriptor of the folder `path`; it and its parents are made if missing.  Raises OSError."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    for count in range(1, len(parts) + 1):
        _make_one(root, b"/".join(parts[:count]), mode)
    return open_inside(root, path, _FOLDER)


def make_file(root: int, path: bytes) -> int:
    """A descriptor of the file `path`, made empty (and its parents) if there is nothing.  Raises OSError."""
    try:
        return open_inside(root, path)
    except FileNotFoundError:
        folder, _, name = path.rstrip(b"/").rpartition(b"/")
    parent = make_folder(root, folder)
    try:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent))
    finally:
        os.close(parent)
    return open_inside(root, path)


def mount_folder(root: int, item: Mount) -> None:
    """Mounts on the folder that `item` names inside `root`, made if missing.  Raises TetherError."""
    _mount_on(make_folder(root, item.path), item)


def mount_file(root: int, item: Mount) -> None:
    """Mounts on the file that `item` names inside `root`, made if missing.  Raises TetherError."""
    _mount_on(make_file(root, item.path), item)


def _mount_on(target: int, item: Mount) -> None:
    """Mounts on what `target` is open as, and closes it."""
    try:
        mount(item.source or item.kind, by_handle(target), item.kind, item.flags, item.options)
    except OSError as error:
        number = error.errno or 0
        raise TetherError(f"{item.kind or item.source} on {os.fsdecode(item.path)}", os.strerror(number), number,
                          hint_for(number, item.kind)) from error
    finally:
        os.close(target)


def by_handle(handle: int) -> str:
    """The path by which an open file can be named, whatever becomes of its own."""
    return f"/proc/self/fd/{handle}"


def hint_for(number: int, kind: str) -> str:
    """What to do about a failed mount."""
    if number == errno.ENODEV and kind:
        return f"this kernel has no {kind} file system: choose one that has"
    if number == errno.EINVAL:
        return "the disk or the options are not what this file system expects; the kernel's log says more"
    return ""


def _make_one(root: int, path: bytes, mode: int) -> None:
    """Makes one folder, whose parent is there, unless something (also a link to a folder) has its name."""
    try:
        os.close(open_inside(root, path))
        return
    except FileNotFoundError:
        pass  # the usual case: made below
    folder, _, name = path.rpartition(b"/")
    parent = open_inside(root, folder, _FOLDER)
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError as error:
        raise TetherError(os.fsdecode(b"/" + path), "is a symbolic link to nothing", errno.ENOENT,
                          "make what it points to, or use another path") from error
    finally:
        os.close(parent)
