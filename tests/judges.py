"""Other people's programs as judges: what they see in an image, in a form that compares."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and owners need root")


def needs_tool(name: str) -> pytest.MarkDecorator:
    """Skip where the program is not installed."""
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


def _mountable() -> bool:
    return os.geteuid() == 0 and "\terofs\n" in Path("/proc/filesystems").read_text()


needs_mount = pytest.mark.skipif(not _mountable(), reason="needs root and a kernel with EROFS")


class Seen(NamedTuple):
    """What one name looks like to its user."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int
    nlink: int
    #: Digest of a file's content, target of a link.
    content: str
    xattrs: tuple[tuple[str, bytes], ...]


def look(path: bytes) -> Seen:
    """One file, its link not followed."""
    facts = os.lstat(path)
    content = ""
    if stat.S_ISREG(facts.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(facts.st_mode):
        content = os.fsdecode(os.readlink(path))
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
    size = 0 if stat.S_ISDIR(facts.st_mode) else facts.st_size
    nlink = 0 if stat.S_ISDIR(facts.st_mode) else facts.st_nlink
    return Seen(
        facts.st_mode, facts.st_uid, facts.st_gid, size, facts.st_mtime_ns, facts.st_rdev, nlink, content, xattrs
    )


def snapshot(root: Path) -> dict[bytes, Seen]:
    """Every file below *root* by its path."""
    found: dict[bytes, Seen] = {}
    top = os.fsencode(root)
    stack = [top]
    while stack:
        folder = stack.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                found[os.path.relpath(entry.path, top)] = look(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
    return found


def fsck(image: Path) -> None:
    """fsck.erofs reads the whole image and has nothing to say."""
    done = subprocess.run(["fsck.erofs", "--extract", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "<E>" not in done.stdout + done.stderr


@contextmanager
def mounted(image: Path, where: Path) -> Iterator[Path]:
    """The image as the kernel shows it."""
    where.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", image, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


@contextmanager
def stacked(images: Sequence[Path], folder: Path) -> Iterator[Path]:
    """Several images, lowest first, as overlayfs merges them."""
    with _all_mounted(list(images), folder, 0) as layers:
        where = folder / "merged"
        where.mkdir()
        if len(layers) == 1:
            layers.append(folder / "nothing")
            layers[-1].mkdir()
        options = "lowerdir=" + ":".join(str(layer) for layer in reversed(layers))
        subprocess.run(["mount", "-t", "overlay", "-o", f"ro,{options}", "overlay", where], check=True)
        try:
            yield where
        finally:
            subprocess.run(["umount", where], check=True)


@contextmanager
def _all_mounted(images: list[Path], folder: Path, at: int) -> Iterator[list[Path]]:
    if not images:
        yield []
        return
    with mounted(images[0], folder / f"layer{at}") as first, _all_mounted(images[1:], folder, at + 1) as rest:
        yield [first, *rest]
