"""The blobs of a stored image, from wherever they can be had: the store, else the registry they came from.

Decision: a pull does not keep the layers as they came.  They would double the store, and the registry still has them;
so ``save`` and ``push`` fetch those again that they need.  Making a tar out of the converted layer instead would give
another digest, and so another image.  What has no registry behind it (``load``, ``import``) is kept, unless the user
says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagebuild.digest import hasher_for
from imagebuild.errors import LayerError, StoreError
from imagebuild.files import explained
from imagebuild.oci.manifest import Descriptor
from imagebuild.oci.reference import Reference
from imagebuild.registry.registry import Registry
from imagebuild.registry.settings import RegistrySettings
from imagebuild.store.image import Image
from imagebuild.store.store import Store

_CHUNK = 256 << 10


class ImageBlobs:
    """The layers of one image as they came.  Close it, or use it as a context manager."""

    def __init__(self, store: Store, image: Image, settings: RegistrySettings | None = None) -> None:
        self._store, self._image = store, image
        self._origin = store.record(image).origin
        # Made now and not when it is first needed, which would be in several threads at once.
        self._registry = Registry(settings) if self._origin else None

    def __enter__(self) -> ImageBlobs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection to the registry, if there is one."""
        if self._registry:
            self._registry.close()

    def check(self) -> None:
        """Raise StoreError, before any work is done, if a layer can be had nowhere."""
        if self._origin:
            return
        missing = [layer for layer in self._image.manifest.layers if not self._store.has_blob(layer.digest)]
        if missing:
            cause = f"{len(missing)} of its layers were not kept, and it came from no registry"
            raise StoreError("find layers", self._image.reference, cause, "load or pull it again with --keep-blobs")

    def origin(self) -> Reference | None:
        """The registry's name for the image, if it came from one."""
        return Reference.parse(self._origin) if self._origin else None

    @contextmanager
    def open(self, layer: Descriptor) -> Iterator[Iterator[bytes]]:
        """A layer's bytes, held to its digest: LayerError at the end if they are others."""
        if self._store.has_blob(layer.digest):
            yield _verified(_file_chunks(self._store.blob_path(layer.digest)), layer)
            return
        origin = self.origin()
        if origin is None or self._registry is None:
            raise StoreError("find layers", layer.digest, "it was not kept", "pull the image with --keep-blobs")
        with self._registry.blob(origin, layer) as stream:
            yield _verified(iter(stream), layer)

    def file(self, layer: Descriptor, folder: Path) -> Path:
        """A layer as a file: the store's own, or a copy made in ``folder``."""
        if self._store.has_blob(layer.digest):
            return self._store.blob_path(layer.digest)
        path = folder / layer.digest.replace(":", "-")
        if not path.exists():
            temporary = path.with_suffix(".part")
            with explained("fetch layer", layer.digest), self.open(layer) as chunks, temporary.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
            os.rename(temporary, path)
        return path


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _verified(chunks: Iterator[bytes], layer: Descriptor) -> Iterator[bytes]:
    digest, size = hasher_for(layer.digest), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        yield chunk
    if size != layer.size or digest.hexdigest() != layer.digest.partition(":")[2]:
        raise LayerError("verify", layer.digest, f"its {size} bytes have another digest", "imagebuild verify --repair")
