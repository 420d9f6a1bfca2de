"""Images in registries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from imagebuild.oci.manifest import Descriptor
from imagebuild.oci.platforms import Platform
from imagebuild.oci.reference import Reference
from imagebuild.registry.registry import Registry
from imagebuild.registry.settings import RegistrySettings
from imagebuild.sources.source import Source, SourceImage


class RegistrySource(Source):
    """An image in a registry."""

    durable = True

    def __init__(self, reference: Reference, settings: RegistrySettings | None = None) -> None:
        self._reference = reference
        self._registry = Registry(settings)

    def resolve(self, platform: Platform | None) -> SourceImage:
        found = self._registry.resolve(self._reference, platform)
        reference = self._reference
        name = f"{reference.name}@{reference.digest}" if reference.digest else str(reference)
        origin = f"{reference.name}@{found.digest}"
        return SourceImage(found.digest, found.manifest, found.config, (name,), origin)

    @contextmanager
    def blob(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        with self._registry.blob(self._reference, descriptor) as stream:
            yield iter(stream)

    def close(self) -> None:
        self._registry.close()
