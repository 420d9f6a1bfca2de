"""How much disk the store takes, and for what."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagebuild.store.image import ImageRecord
from imagebuild.store.store import Store, record_needs


@dataclass(frozen=True)
class ImageUsage:
    """One image: bytes on the disk, and how many of them only this image needs."""

    names: tuple[str, ...]
    digest: str
    id: str
    total: int
    unique: int
    layers: int


@dataclass(frozen=True)
class Usage:
    """The whole store in bytes on the disk.  ``unneeded`` is what ``gc`` would give back at least."""

    images: tuple[ImageUsage, ...]
    layers: int
    blobs: int
    disks: int
    unfinished: int
    unneeded: int

    @property
    def total(self) -> int:
        """Everything together."""
        return self.layers + self.blobs + self.disks + self.unfinished


def usage(store: Store) -> Usage:
    """Measure the store.  Others may change it meanwhile; then the numbers are of a moment in between."""
    records = store.records()
    tags = store.tags()
    needs = {record.manifest: _files(store, record) for record in records}
    users = Counter(path for paths in needs.values() for path in paths)
    images = []
    for record in records:
        paths = needs[record.manifest]
        names = tuple(name for name, digest in tags.items() if digest == record.manifest)
        unique = sum(_allocated(path) for path in paths if users[path] == 1)
        total = sum(map(_allocated, paths))
        images.append(ImageUsage(names, record.manifest, record.config, total, unique, len(record.layers)))
    rooted = set(tags.values()) | set(store.holds().values())
    needed = {path for record in records if record.manifest in rooted for path in needs[record.manifest]}
    content = [path for folder in ("layers", "blobs") for path in _files_below(store.folder(folder))]
    return Usage(
        images=tuple(images),
        layers=_below(store.folder("layers")),
        blobs=_below(store.folder("blobs")),
        disks=_below(store.folder("disks")),
        unfinished=_below(store.folder("tmp")),
        unneeded=sum(_allocated(path) for path in content if path not in needed),
    )


def _files(store: Store, record: ImageRecord) -> frozenset[Path]:
    needs = record_needs(record)
    layers = {path for key in needs.layers for path in (store.layer_path(key), store.facts_path(key))}
    return frozenset(layers | {store.blob_path(digest) for digest in needs.blobs})


def _allocated(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _below(folder: Path) -> int:
    return sum(_allocated(path) for path in _files_below(folder))


def _files_below(folder: Path) -> Iterator[Path]:
    """All files; unlike ``rglob``, ``walk`` does not mind that a folder goes away meanwhile."""
    return (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
