"""What the store keeps: images and their layers, and the record of an image as a file holds it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from imagebuild.digest import digest_problem
from imagebuild.errors import StoreError
from imagebuild.oci.imageconfig import ImageConfig
from imagebuild.oci.manifest import Manifest

RECORD_FORMAT = 1


class Layer(NamedTuple):
    """One layer as a file system in a file.

    ``digest``, ``size`` (bytes) and ``media_type`` are those of the blob it came from, ``diff_id`` is the digest of its
    tar stream, ``path`` the EROFS file.  A patch (patch.py) is a layer too: its ``diff_id`` says what it patches, and
    it came from no blob, so its ``digest`` is empty.  ``data_size`` is the size of the file system in bytes; if
    ``verity_root`` is set, a dm-verity hash tree with this root (hex) follows it in the file.
    """

    diff_id: str
    digest: str
    size: int
    media_type: str
    path: Path
    data_size: int = 0
    verity_root: str = ""

    @property
    def disk_size(self) -> int:
        """Bytes of the file, its hash tree included."""
        return self.path.stat().st_size


class Image(NamedTuple):
    """An image that is in the store, whole.

    ``reference`` is the name it was asked for by, or its digest; ``digest`` is that of its manifest.  ``layers`` are
    what to stack, lowest first; of layers that an image has twice only the upper is here, which gives the same tree
    (what the lower one brings, the upper brings again).
    """

    reference: str
    digest: str
    manifest: Manifest
    config: ImageConfig
    layers: tuple[Layer, ...]
    make_disk: Callable[[tuple[Layer, ...]], Path]
    """The store's; for ``disk``."""

    @property
    def id(self) -> str:
        """Docker's image ID: the digest of the config."""
        return self.config.digest

    def disk(self) -> Path:
        """The VMDK descriptor of a disk with all layers, partition n (from 1) being ``layers[n - 1]``; kept for later.

        Whoever opens it does so read-only, and holds a pin on the image meanwhile.
        """
        return self.make_disk(self.layers)


class LayerRecord(NamedTuple):
    """One layer as an image's record names it.

    ``key`` is the name of its file, ``patch`` that of the file to be stacked right above it (patch.py), empty for
    nearly all layers.  ``data_size`` is the size of the file system in bytes; if ``verity_root`` is set, a dm-verity
    hash tree with this root (hex) follows it in the file; ``patch_size`` and ``patch_root`` say the same of the patch.
    """

    diff_id: str
    key: str
    digest: str
    size: int
    media_type: str
    patch: str = ""
    data_size: int = 0
    verity_root: str = ""
    patch_size: int = 0
    patch_root: str = ""


class ImageRecord(NamedTuple):
    """What the store writes down of an image.  ``origin`` is where its blobs can be had again, empty if nowhere.

    ``stored`` is the time in seconds since 1970 when it came.
    """

    manifest: str
    config: str
    layers: tuple[LayerRecord, ...]
    origin: str
    stored: float

    def to_json(self) -> bytes:
        """The record as a file holds it."""
        document = {
            "format": RECORD_FORMAT,
            "manifest": self.manifest,
            "config": self.config,
            "layers": [layer._asdict() for layer in self.layers],
            "origin": self.origin,
            "stored": self.stored,
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, raw: bytes, subject: str) -> ImageRecord:
        """Read a record back; StoreError if it is none."""
        try:
            document: dict[str, Any] = json.loads(raw)
            if document["format"] != RECORD_FORMAT:
                raise ValueError(f"its format is {document['format']}, and {RECORD_FORMAT} is known")
            record = cls(
                manifest=document["manifest"],
                config=document["config"],
                layers=tuple(LayerRecord(**layer) for layer in document["layers"]),
                origin=document["origin"],
                stored=float(document["stored"]),
            )
            if problem := digest_problem(record.manifest) or digest_problem(record.config):
                raise ValueError(problem)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "imagebuild verify --repair removes it; then pull the image again"
            raise StoreError("read image record", subject, f"damaged: {error}", remedy) from error
        return record

    def stack(self) -> tuple[LayerRecord, ...]:
        """The layers to stack, lowest first: of equal ones only the topmost."""
        seen: dict[str, LayerRecord] = {}
        for layer in reversed(self.layers):
            seen.setdefault(layer.diff_id, layer)
        return tuple(reversed(seen.values()))

    def files(self) -> tuple[str, ...]:
        """The keys of the files to stack, lowest first: layers, and patches right above theirs."""
        return tuple(key for layer in self.stack() for key in (layer.key, layer.patch) if key)
