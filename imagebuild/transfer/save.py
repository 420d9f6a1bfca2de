"""Writing images out: as an OCI layout in a folder or an archive, and as an archive for ``docker load``.

The archive for Docker is what Docker itself writes since version 25: an OCI layout with a ``manifest.json`` beside it,
so every reader finds what it looks for.  Manifests, configs and layers are those that came, byte by byte.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import IO, Any

from imagebuild.errors import ImageNameError
from imagebuild.files import explained
from imagebuild.oci.manifest import OCI_INDEX
from imagebuild.oci.reference import Reference
from imagebuild.registry.settings import RegistrySettings
from imagebuild.sources.docker_archive import MANIFEST_FILE
from imagebuild.sources.oci_layout import FULL_NAME, INDEX_FILE, LAYOUT_FILE, LAYOUT_VERSION, REF_NAME, blob_name
from imagebuild.store.image import Image
from imagebuild.store.store import Store
from imagebuild.transfer.image_blobs import ImageBlobs

_MODE_FILE, _MODE_FOLDER = 0o644, 0o755


class Format(Enum):
    """What to write."""

    DOCKER_ARCHIVE = "docker-archive"
    OCI_ARCHIVE = "oci-archive"
    OCI = "oci"


class _Sink(ABC):
    """Where files go."""

    def __init__(self) -> None:
        self.written: set[str] = set()

    def put(self, name: str, content: bytes) -> None:
        """Write a small file."""
        self.put_stream(name, len(content), iter([content]))

    @abstractmethod
    def put_stream(self, name: str, size: int, chunks: Iterator[bytes]) -> None:
        """Write a file of ``size`` bytes."""


class _Folder(_Sink):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def put_stream(self, name: str, size: int, chunks: Iterator[bytes]) -> None:  # noqa: ARG002 - an archive needs it
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
        self.written.add(name)


class _Archive(_Sink):
    """A tar archive without anything that would differ between two runs."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def put_stream(self, name: str, size: int, chunks: Iterator[bytes]) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, _MODE_FILE
        self._file.write(member.tobuf(tarfile.GNU_FORMAT))
        for chunk in chunks:
            self._file.write(chunk)
        self._file.write(bytes(-size % tarfile.BLOCKSIZE))
        self.written.add(name)

    def finish(self) -> None:
        """Write the end of the archive."""
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))


def save(
    store: Store,
    images: Sequence[Image],
    destination: Path | IO[bytes],
    form: Format = Format.DOCKER_ARCHIVE,
    *,
    settings: RegistrySettings | None = None,
) -> None:
    """Write ``images`` to a file or folder, which must not exist, or to an open file (archives only).

    Layers that were not kept are fetched again from the images' registry.  Nothing is left behind on an error, but
    in an open file.
    """
    if not isinstance(destination, Path):
        _save_archive(store, images, destination, form, settings)
        return
    temporary = destination.with_name(f".{destination.name}.part")
    with explained("save", str(destination), output=True):
        if destination.exists():
            raise FileExistsError(f"{destination} exists already")
        try:
            if form is Format.OCI:
                temporary.mkdir(mode=_MODE_FOLDER)
                _save(store, images, _Folder(temporary), form, settings)
            else:
                with temporary.open("wb") as file:
                    _save_archive(store, images, file, form, settings)
            temporary.rename(destination)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            temporary.unlink(missing_ok=True)


def _save_archive(
    store: Store, images: Sequence[Image], file: IO[bytes], form: Format, settings: RegistrySettings | None
) -> None:
    archive = _Archive(file)
    _save(store, images, archive, form, settings)
    archive.finish()


def _save(store: Store, images: Sequence[Image], sink: _Sink, form: Format, settings: RegistrySettings | None) -> None:
    sink.put(LAYOUT_FILE, json.dumps({"imageLayoutVersion": LAYOUT_VERSION}).encode())
    for image in images:
        with store.pin(image), ImageBlobs(store, image, settings) as blobs:
            blobs.check()
            _put_blobs(image, blobs, sink)
    names = {image.digest: _names(store, image) for image in images}
    distinct = list({image.digest: image for image in images}.values())
    sink.put(INDEX_FILE, json.dumps(_index(distinct, names)).encode())
    if form is Format.DOCKER_ARCHIVE:
        sink.put(MANIFEST_FILE, json.dumps([_saved(image, names[image.digest]) for image in distinct]).encode())


def _put_blobs(image: Image, blobs: ImageBlobs, sink: _Sink) -> None:
    small = {image.digest: image.manifest.raw, image.manifest.config.digest: image.config.raw}
    for digest, raw in small.items():
        if blob_name(digest) not in sink.written:
            sink.put(blob_name(digest), raw)
    for layer in image.manifest.layers:
        if blob_name(layer.digest) not in sink.written:
            with blobs.open(layer) as chunks:
                sink.put_stream(blob_name(layer.digest), layer.size, chunks)


def _names(store: Store, image: Image) -> list[Reference]:
    """What to call an image: the name it was asked for by, or all it has if that was none."""
    own = [image.reference] if image.reference != image.digest else []
    tags = own or [name for name, digest in store.tags().items() if digest == image.digest]
    return [reference for reference in map(_reference, tags) if reference and reference.tag]


def _reference(name: str) -> Reference | None:
    try:
        return Reference.parse(name)
    except ImageNameError:
        return None  # a folder's or an archive's name


def _index(images: Iterable[Image], names: dict[str, list[Reference]]) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    for image in images:
        platform = {"architecture": image.config.platform.architecture, "os": image.config.platform.os}
        if image.config.platform.variant:
            platform["variant"] = image.config.platform.variant
        entry = {
            "mediaType": image.manifest.media_type,
            "digest": image.digest,
            "size": len(image.manifest.raw),
            "platform": platform,
        }
        annotations = [{FULL_NAME: str(name), REF_NAME: name.tag} for name in names[image.digest]]
        entries.extend(entry | {"annotations": one} for one in annotations)
        if not annotations:
            entries.append(entry)
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}


def _saved(image: Image, names: list[Reference]) -> dict[str, Any]:
    return {
        "Config": blob_name(image.manifest.config.digest),
        "RepoTags": [name.familiar() for name in names] or None,
        "Layers": [blob_name(layer.digest) for layer in image.manifest.layers],
    }
