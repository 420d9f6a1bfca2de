"""A folder with a little of everything that an archive has to carry."""

from __future__ import annotations

import os
from pathlib import Path


def make_odd_tree(folder: Path, *, big: int, hole: int) -> Path:
    """Files plain, big (`big` bytes), empty and sparse (`hole` bytes), long and undecodable names, links, a pipe."""
    (folder / "sub/deep").mkdir(parents=True)
    (folder / "plain").write_bytes(b"text\n" * 3)
    (folder / "big").write_bytes(os.urandom(big))
    (folder / "empty").touch()
    (folder / "sub/deep" / ("n" * 200)).write_text("long")
    os.link(folder / "plain", folder / "sub/other")
    os.symlink("../plain", folder / "sub/link")
    os.symlink("x/" * 1500, folder / "sub/far")
    os.mkfifo(folder / "pipe")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\n\xfe")).write_bytes(b"odd")
    with open(folder / "holes", "wb") as file:
        file.seek(1 << 20)
        file.write(b"middle")
        file.truncate(hole)
    return folder
