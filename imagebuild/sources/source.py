"""Where images come from: one small interface; spelling.py lists all kinds of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import NamedTuple

from imagebuild.oci.imageconfig import ImageConfig
from imagebuild.oci.manifest import Descriptor, Manifest
from imagebuild.oci.platforms import Platform


class SourceImage(NamedTuple):
    """An image that a source has: verified metadata, and blobs for the asking.

    ``names`` are what to call it in the store, ``origin`` is the registry's name for it that still leads to its blobs
    later, empty if there is none.
    """

    digest: str
    manifest: Manifest
    config: ImageConfig
    names: tuple[str, ...]
    origin: str = ""


class Source(ABC):
    """Something that has an image; a context manager.  ``blob`` may be used from several threads."""

    #: Whether the user's program also keeps what is needed to get the image's blobs again.
    durable = False

    @abstractmethod
    def resolve(self, platform: Platform | None) -> SourceImage:
        """The image for a platform (this host's if None).  Raises OperationError."""

    @abstractmethod
    def blob(self, descriptor: Descriptor) -> AbstractContextManager[Iterator[bytes]]:
        """The bytes of a blob of the resolved image, not verified."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Let go of what is open."""

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
