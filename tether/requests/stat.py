"""What is at a path of the container (Docker's container path stat), asked by a worker that is confined to its root."""

import errno
import os
import stat

from tether.faults import TetherError
from tether.link.late_messages import FileStat
from tether.requests.worker import Desk
from tether.rootfs.inside import open_inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LINKS = 40  # MAXSYMLINKS of linux/namei.h


def file_stat(desk: Desk, path: bytes) -> FileStat:
    """lstat(2) of `path`, which begins at the container's root.  Raises OSError, TetherError."""
    check_path(path)
    desk.confine()
    try:
        handle = open_inside(desk.root, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error  # as it was asked for
    info = os.fstat(handle)
    link = target = b""
    if stat.S_ISLNK(info.st_mode):
        link = os.readlink(b"", dir_fd=handle)
        target = follow(path, _read_link)
    return FileStat(name=base_name(path), mode=info.st_mode, size=info.st_size, mtime_ns=info.st_mtime_ns,
                    uid=info.st_uid, gid=info.st_gid, link=link, target=target)


def check_path(path: bytes) -> None:
    """Raises TetherError for what can be no path."""
    if not path or b"\0" in path:
        raise TetherError("path", "is empty" if not path else "has a null byte", errno.EINVAL, "give an absolute path")


def base_name(path: bytes) -> bytes:
    """The last part of a path; "/" of the root."""
    return path.rstrip(b"/").rpartition(b"/")[2] or b"/"


def follow(path: bytes, read_link: "Callable[[bytes], bytes | None]") -> bytes:
    """Where `path` leads, links resolved as from inside, also when nothing is there.

    `read_link` tells what a link says, None for what is none.  For showing only: what is opened goes through openat2.
    Raises OSError(ELOOP).
    """
    done: list[bytes] = []
    left = list(reversed(path.split(b"/")))
    links = 0
    while left:
        part = left.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            del done[-1:]
            continue
        said = read_link(b"/" + b"/".join([*done, part]))
        if said is None:
            done.append(part)
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if said.startswith(b"/"):
            done.clear()
        left += reversed(said.split(b"/"))
    return b"/" + b"/".join(done)


def _read_link(path: bytes) -> bytes | None:
    try:
        return os.readlink(path)
    except OSError:
        return None  # no link, or nothing there
