"""What tether itself has changed in the container's root: mount points that the image does not have, and their parents.

It is none of the container's changes, so `diff` leaves it out.  Noted on the writable disk, beside what it is about: a
disk that is used again brings it along.
"""

import os
import stat

from tether.kernel import files
from tether.rootfs.inside import by_handle, open_inside
from tether.rootfs.root import MERGED, WRITABLE

NOTE = f"{WRITABLE}/mountpoints"
UPPER = f"{WRITABLE}/upper"
_FIELDS = 5

State = dict[bytes, tuple[int, ...]]  # path from the container's root -> what `describe` says of it


def describe(info: os.stat_result) -> tuple[int, ...]:
    """What changes with a change: mode, owners, time; size where it says something."""
    size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
    return info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, size


def state() -> State:
    """The writable layer as it is."""
    found: State = {}
    folders = [b""]
    while folders:
        folder = folders.pop()
        with os.scandir(os.fsencode(UPPER) + folder) as entries:
            for entry in entries:
                path = folder + b"/" + entry.name
                found[path] = describe(entry.stat(follow_symlinks=False))
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
    return found


def note(before: State, points: list[bytes]) -> None:
    """Remembers what is not as `before` of the mount points `points`, as they are called in the end, and their parents.

    A container that runs meanwhile changes other things, which are its own.
    """
    made = {path: one for path, one in state().items()
            if before.get(path) != one and any((point + b"/").startswith(path + b"/") for point in points)}
    if made:
        files.write(NOTE, write({**read(files.read_if_there(NOTE) or b""), **made}))


def real(root: int, path: bytes) -> bytes:
    """What `path` of the container is called once its links are resolved."""
    handle = open_inside(root, path)
    try:
        return os.fsencode(os.readlink(by_handle(handle)).removeprefix(MERGED))
    finally:
        os.close(handle)


def read(text: bytes) -> State:
    """What `write` wrote."""
    found: State = {}
    for line in text.split(b"\0")[:-1]:
        *numbers, path = line.split(b" ", _FIELDS)
        found[path] = tuple(int(number) for number in numbers)
    return found


def write(ours: State) -> bytes:
    """Five numbers and the path of each, ended by a null byte."""
    return b"".join(" ".join(map(str, one)).encode() + b" " + path + b"\0" for path, one in ours.items())
