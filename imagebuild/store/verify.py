"""Checking that what the store holds is what it should be, byte by byte, and removing what is not.

A repair only deletes: what is missing then is fetched by the next pull.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imagebuild.digest import digest_problem, hasher_for
from imagebuild.disk import vmdk
from imagebuild.errors import DiskError, OperationError
from imagebuild.files import explained
from imagebuild.store.image import ImageRecord
from imagebuild.store.layer_store import LayerFacts, file_crc32
from imagebuild.store.store import LAYER_SUFFIX, Store, key_digest

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be: what it is, what is wrong, and the files to delete to be rid of it."""

    subject: str
    cause: str
    damaged: tuple[Path, ...] = ()


def verify(store: Store, *, repair: bool = False, checking: Callable[[str], None] = lambda _: None) -> list[Problem]:
    """Check everything; ``repair`` deletes what is damaged.  ``checking`` is told the name of each thing in turn."""
    problems = []
    with explained("verify", str(store.root)):
        for check in (_blobs, _layers, _records, _names, _disks):
            for problem in check(store, checking):
                problems.append(problem)
                if repair:
                    with store.lock(exclusive=True):
                        _delete(problem)
    return problems


def _delete(problem: Problem) -> None:
    for path in problem.damaged:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _blobs(store: Store, checking: Callable[[str], None]) -> Iterator[Problem]:
    for path in sorted(store.folder("blobs").glob("*/[!.]*")):
        digest = f"{path.parent.name}:{path.name}"
        checking(digest)
        if digest_problem(digest):
            yield Problem(digest, "the name of the file is no digest", (path,))
            continue
        found = hasher_for(digest)
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
        if found.hexdigest() != path.name:
            yield Problem(f"blob {digest}", f"its content has the digest {found.hexdigest()}", (path,))


def _layers(store: Store, checking: Callable[[str], None]) -> Iterator[Problem]:
    for path in sorted(store.folder("layers").glob(f"[!.]*{LAYER_SUFFIX}")):
        key = path.name.removesuffix(LAYER_SUFFIX)
        checking(key)
        facts_path = store.facts_path(key)
        damaged = (path, facts_path)
        try:
            facts = LayerFacts.from_json(facts_path.read_bytes())
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            yield Problem(f"layer {key}", f"its facts cannot be read: {error}", damaged)
            continue
        size = path.stat().st_size
        if size != facts.size:
            yield Problem(f"layer {key}", f"its file has {size} bytes instead of {facts.size}", damaged)
        elif file_crc32(path) != facts.crc32:
            yield Problem(f"layer {key}", "its content has changed", damaged)


def _records(store: Store, checking: Callable[[str], None]) -> Iterator[Problem]:
    for path in sorted(store.folder("images").glob("[!.]*.json")):
        checking(path.stem)
        try:
            record = ImageRecord.from_json(path.read_bytes(), path.stem)
            missing = [key for key in record.files() if not store.layer_path(key).exists()]
            if missing:
                yield Problem(f"image {record.manifest}", f"{len(missing)} of its layers are missing: pull it again")
            else:
                store.get(record.manifest)
        except OperationError as error:
            yield Problem(f"image {path.stem}", error.cause, (path,))


def _names(store: Store, checking: Callable[[str], None]) -> Iterator[Problem]:
    for kind in ("tags", "holds"):
        known = getattr(store, kind)()
        paths = {store.name_path(kind, name): name for name in known}
        for path in sorted(store.folder(kind).glob("[!.]*.json")):
            name = paths.get(path, "")
            checking(name)
            if not name:
                yield Problem(f"{kind}/{path.name}", "it cannot be read", (path,))
            elif not store.record_path(known[name]).exists():
                yield Problem(f"name {name}", "the image it stands for is not here", (path,))


def _disks(store: Store, checking: Callable[[str], None]) -> Iterator[Problem]:
    """Disks are made from the layers, so a doubtful one is no loss."""
    for folder in sorted(store.folder("disks").iterdir()):
        checking(folder.name)
        try:
            cause = _disk_problem(folder)
        except (OSError, DiskError, ValueError) as error:
            cause = str(error)
        if cause:
            yield Problem(f"disk {folder.name}", cause, (folder,))


def _disk_problem(folder: Path) -> str:
    links = sorted(path for path in folder.iterdir() if path.is_symlink())
    targets = [path.resolve(strict=True) for path in links]
    diff_ids = [key_digest(target.name) for target in targets]
    plan = vmdk.plan_image_disk([(d, t.stat().st_size) for d, t in zip(diff_ids, targets, strict=True)])
    if (folder / vmdk.DESCRIPTOR_NAME).read_text() != plan.descriptor:
        return "its descriptor does not fit its layers"
    files = vmdk.table_files(plan)
    return next((f"{name} has changed" for name, data in files.items() if (folder / name).read_bytes() != data), "")
