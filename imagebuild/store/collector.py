"""Deleting from the store what nobody needs, and nothing else.

Needed is what a name, a hold or a living lease leads to.  The collector holds the store's lock alone, so no name and no
lease appears while it looks and deletes; work in progress has its own lease and its locked workspace.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from imagebuild.errors import StoreError
from imagebuild.files import TEMPORARY_SUFFIX, explained
from imagebuild.locks import try_lock
from imagebuild.store.image import Image, ImageRecord
from imagebuild.store.lease import Needs, clear_abandoned, living
from imagebuild.store.store import LAYER_SUFFIX, Store, canonical, record_needs

# Age in seconds at which a temporary file in the store's own folders is certainly a dead writer's: they live for
# milliseconds, and unlike workspaces they carry no lock.
_STALE_S = 3600.0


@dataclass
class Collected:
    """What was deleted, by name, and how many bytes that gave back."""

    images: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    blobs: list[str] = field(default_factory=list)
    disks: list[str] = field(default_factory=list)
    freed: int = 0


@dataclass(frozen=True)
class Removed:
    """What ``remove`` did: the names taken away, and the image's manifest digest if the image went with them."""

    untagged: tuple[str, ...]
    deleted: str
    collected: Collected


def collect(store: Store, *, dangling: bool = True) -> Collected:
    """Delete what nobody needs; images without a name too if ``dangling``.

    Raises StoreError, and deletes nothing, if an image's record cannot be read: what it needs would be unknown.
    """
    with explained("collect", str(store.root)), store.lock(exclusive=True):
        return _collect(store, dangling)


def remove(store: Store, name: str, *, force: bool = False) -> Removed:
    """Take a name away and, with its last name, the image.

    An image given by its ID loses all its names, if it has only one or ``force`` is given.  One that is in use stays
    until it no longer is; without ``force`` its last name stays too, and StoreError says so.
    """
    image = store.find(name)
    if image is None:
        raise StoreError("remove image", name, "there is no such image", "imagebuild ls shows what there is")
    with explained("remove image", name), store.lock(exclusive=True):
        own = [tag for tag, digest in store.tags().items() if digest == image.digest]
        doomed = [canonical(name)] if canonical(name) in own else own
        if not force and len(doomed) == len(own):
            _refuse_last(store, image, name, doomed)
        for tag in doomed:
            store.drop_name("tags", tag)
        deleted = ""
        if len(doomed) == len(own) and image.digest not in store.holds().values():
            store.record_path(image.digest).unlink(missing_ok=True)
            deleted = image.digest
        return Removed(tuple(doomed), deleted, _collect(store, dangling=False))


def _refuse_last(store: Store, image: Image, name: str, doomed: list[str]) -> None:
    """Raise StoreError if an image should not lose these, its last names."""
    if len(doomed) > 1:
        raise StoreError("remove image", name, f"it has {len(doomed)} names", "name one of them, or use --force")
    users = [owner for owner, digest in store.holds().items() if digest == image.digest]
    if not users and any(image.digest in needs.images for needs in living(store.folder("leases"))):
        users = ["a running machine"]
    if users:
        remedy = "remove that first; with --force the name goes now and the image when it is free"
        raise StoreError("remove image", name, f"it is in use by {', '.join(users[:5])}", remedy)


def _collect(store: Store, dangling: bool) -> Collected:
    done = Collected()
    needed = Needs.union(living(store.folder("leases")))
    rooted = needed.images | set(store.tags().values()) | set(store.holds().values())
    for record in _all_records(store):
        if record.manifest in rooted or not dangling:
            needed |= record_needs(record)
        else:
            done.images.append(record.manifest)
            _delete(store.record_path(record.manifest), done)
    # Layers before their facts: killed in between, there are facts of nothing, which nobody minds.
    for path in sorted(store.folder("layers").iterdir(), key=lambda path: not path.name.endswith(LAYER_SUFFIX)):
        key = path.name.removesuffix(LAYER_SUFFIX).removesuffix(".json")
        if key not in needed.layers and not path.name.startswith("."):
            if path.name.endswith(LAYER_SUFFIX):
                done.layers.append(key)
            _delete(path, done)
    for path in store.folder("blobs").glob("*/*"):
        digest = f"{path.parent.name}:{path.name}"
        if digest not in needed.blobs and not path.name.startswith("."):
            done.blobs.append(digest)
            _delete(path, done)
    for path in store.folder("disks").iterdir():
        if path.name not in needed.disks:
            done.disks.append(path.name)
            _delete(path, done)
    _sweep_leftovers(store, done)
    return done


def _all_records(store: Store) -> list[ImageRecord]:
    return [ImageRecord.from_json(path.read_bytes(), path.name) for path in _named(store.folder("images"))]


def _named(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))


def _sweep_leftovers(store: Store, done: Collected) -> None:
    """What killed processes left: unfinished work, temporary files, locks that nobody holds."""
    clear_abandoned(store.folder("tmp"))
    oldest = time.time() - _STALE_S
    for folder in ("blobs/*", "layers", "images", "tags", "holds"):
        for path in store.root.glob(f"{folder}/.*{TEMPORARY_SUFFIX}"):
            with suppress(FileNotFoundError):  # it was not dead at all, and is finished now
                if path.lstat().st_mtime < oldest:
                    _delete(path, done)
    for path in store.folder("locks").iterdir():
        fd = try_lock(path, create=False)
        if fd is not None:
            path.unlink(missing_ok=True)
            os.close(fd)


def _delete(path: Path, done: Collected) -> None:
    if path.is_dir():
        # The descriptor first: a disk's folder without one counts as not there.
        done.freed += sum(entry.lstat().st_blocks * 512 for entry in path.iterdir())
        for descriptor in path.glob("*.vmdk"):
            descriptor.unlink()
        shutil.rmtree(path)
    else:
        done.freed += path.lstat().st_blocks * 512
        path.unlink()
