"""Composing a new image from layer tars: the few files of an OCI image layout, byte-identical for the same input.

Used for the demo image and by tests; images that exist come through `imagebuild.pull`.
Source: OCI image-spec, image-layout.md, manifest.md and config.md.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAYOUT_VERSION = "1.0.0"
MEDIA_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_CONFIG = "application/vnd.oci.image.config.v1+json"
MEDIA_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
ANNOTATION_REF_NAME = "org.opencontainers.image.ref.name"
WHITEOUT_PREFIX = ".wh."
EPOCH = 1_700_000_000  # the time stamp of everything composed here: any fixed moment keeps builds identical
EPOCH_TEXT = "2023-11-14T22:13:20Z"


@dataclass
class LayerTar:
    """A layer under construction.  Paths are relative ("etc/passwd"); owners are root."""

    _buffer: io.BytesIO = field(default_factory=io.BytesIO)

    def __post_init__(self) -> None:
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed in tar()

    def directory(self, path: str, mode: int = 0o755) -> LayerTar:
        return self._add(path, tarfile.DIRTYPE, mode)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> LayerTar:
        return self._add(path, tarfile.REGTYPE, mode, content=content)

    def symlink(self, path: str, target: str) -> LayerTar:
        return self._add(path, tarfile.SYMTYPE, 0o777, link=target)

    def hard_link(self, path: str, target: str) -> LayerTar:
        return self._add(path, tarfile.LNKTYPE, 0o755, link=target)

    def whiteout(self, path: str) -> LayerTar:
        """Hides what lower layers have at `path` (image-spec, layer.md, "Whiteouts")."""
        parent, _, name = path.rpartition("/")
        return self._add(f"{parent}/{WHITEOUT_PREFIX}{name}".lstrip("/"), tarfile.REGTYPE, 0o644)

    def tar(self) -> bytes:
        """The finished archive; nothing can be added afterwards."""
        self._tar.close()
        return self._buffer.getvalue()

    def _add(self, path: str, kind: bytes, mode: int, content: bytes = b"", link: str = "") -> LayerTar:
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode, entry.mtime, entry.size, entry.linkname = kind, mode, EPOCH, len(content), link
        self._tar.addfile(entry, io.BytesIO(content))
        return self


def write_layout(directory: Path, layers: Sequence[bytes], config: Mapping[str, Any], tag: str = "latest") -> None:
    """Writes an OCI image layout of one linux/amd64 image into `directory`, which is made.

    `layers` are tars, lowest first; `config` is the "config" object of the image config (Env, Cmd, ...).
    """
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    described = [_put(blobs, gzip.compress(layer, compresslevel=6, mtime=0), MEDIA_LAYER) for layer in layers]
    image = {
        "architecture": "amd64",
        "os": "linux",
        "created": EPOCH_TEXT,
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
        "history": [{"created": EPOCH_TEXT, "created_by": f"layer {n}"} for n, _ in enumerate(layers, 1)],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MEDIA_MANIFEST,
        "config": _put(blobs, _json(image), MEDIA_CONFIG),
        "layers": described,
    }
    entry = {**_put(blobs, _json(manifest), MEDIA_MANIFEST), "annotations": {ANNOTATION_REF_NAME: tag}}
    (directory / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_bytes(_json({"imageLayoutVersion": LAYOUT_VERSION}))


def _put(blobs: Path, content: bytes, media_type: str) -> dict[str, Any]:
    digest = _digest(content)
    (blobs / digest.removeprefix("sha256:")).write_bytes(content)
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
