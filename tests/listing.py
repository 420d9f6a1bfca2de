"""What a tree looks like to its user: one line of JSON per file.  Runs on any side: `python3 listing.py FOLDER`.

It needs the standard library only, so that the very same program looks at a tree inside a machine and at another one
outside of it.  A name is shown with backslashes for what is not ASCII; times are nanoseconds; a file's content is its
digest.  The link count and the size of a directory are each file system's own business, and left out.
"""

import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator

CHUNK = 1 << 20


def listing(root: bytes) -> Iterator[list[object]]:
    """Every file below `root`: path, mode, owner, group, size, time, device, links, content, attributes."""
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            yield [_shown(os.path.relpath(path, root)), *_facts(path)]


def _facts(path: bytes) -> list[object]:
    facts = os.lstat(path)
    content = ""
    if stat.S_ISREG(facts.st_mode):
        content = _digest(path)
    elif stat.S_ISLNK(facts.st_mode):
        content = _shown(os.readlink(path))
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names}
    size, links = (0, 0) if stat.S_ISDIR(facts.st_mode) else (facts.st_size, facts.st_nlink)
    device = f"{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}"
    mode = f"{facts.st_mode:o}"
    return [mode, facts.st_uid, facts.st_gid, size, facts.st_mtime_ns, device, links, content, xattrs]


def _digest(path: bytes) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # the fastest one on an emulated processor
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _shown(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace")


if __name__ == "__main__":
    for line in listing(os.fsencode(sys.argv[1])):
        print(json.dumps(line))
