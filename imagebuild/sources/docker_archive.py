"""Archives of ``docker save`` (Docker image specification v1.2; docker_v1.py reads what older ones wrote).

Since Docker 25 such an archive is an OCI layout too, whose manifests and compressed blobs are used as they are.  Where
it has none, a manifest is made up: same archive, same bytes, so the same digest each time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from imagebuild.digest import digest_of, verify_bytes
from imagebuild.errors import ImageNameError, ManifestError, SourceError
from imagebuild.jsoncheck import Node, load_document
from imagebuild.oci.imageconfig import ImageConfig, check_pair, check_platform, parse_config
from imagebuild.oci.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    MAX_LAYERS,
    Descriptor,
    Manifest,
    parse_manifest,
)
from imagebuild.oci.platforms import Platform
from imagebuild.oci.reference import Reference
from imagebuild.sources.docker_v1 import REPOSITORIES_FILE, made_up_config, old_images
from imagebuild.sources.oci_layout import INDEX_FILE, OciLayout, blob_name
from imagebuild.sources.source import Source, SourceImage
from imagebuild.sources.tar_bundle import TarBundle

MANIFEST_FILE = "manifest.json"
_MAX_IMAGES = 1000
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_STEP = "read docker archive"


@dataclass(frozen=True)
class SavedImage:
    """One image of an archive: the names of its config's and its layers' files, and what it is called.

    One from before Docker 1.10 has no config but ``old_ids``, those of its layers; ``config`` is its own ID then.
    """

    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]
    old_ids: tuple[str, ...] = ()


class DockerArchive(Source):
    """An image in an archive.  ``name`` picks one of several, by name or config digest; "" wants the only one."""

    def __init__(self, bundle: TarBundle, name: str, fallback_name: str) -> None:
        self._bundle, self._name, self._fallback_name = bundle, name, fallback_name
        self._files: dict[str, str] = {}  # blob's digest -> file of the archive

    def images(self) -> list[SavedImage]:
        """All images of the archive."""
        if self._bundle.size(MANIFEST_FILE) is None:
            if self._bundle.size(REPOSITORIES_FILE) is None:
                raise self._bundle.missing(MANIFEST_FILE)
            old = old_images(self._bundle)
            return [SavedImage(one.ids[-1], one.layer_files(), one.names, one.ids) for one in old]
        # The one JSON here that is an array; wrapped, so that the same checks read it.
        raw = b'{"images":' + self._bundle.read(MANIFEST_FILE) + b"}"
        return [_saved_image(node) for node in load_document(raw, MANIFEST_FILE).nodes("images", _MAX_IMAGES)]

    def resolve(self, platform: Platform | None) -> SourceImage:
        wanted = platform or Platform.host()
        saved = self._choose()
        old = saved.old_ids
        raw = made_up_config(self._bundle, old) if old else self._bundle.read(saved.config)
        config = parse_config(raw, saved.config)
        check_platform(config, wanted, self._bundle.spelled)
        manifest = self._own_manifest(digest_of(raw)) or self._made_up(saved, config)
        check_pair(manifest, config, self._bundle.spelled)
        names = saved.names or ((self._fallback_name,) if self._fallback_name else ())
        return SourceImage(manifest.digest, manifest, config, names)

    @contextmanager
    def blob(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        yield self._bundle.chunks(self._files.get(descriptor.digest) or blob_name(descriptor.digest))

    def close(self) -> None:
        self._bundle.close()

    def _choose(self) -> SavedImage:
        images = self.images()
        wanted = self._name and _full(self._name)
        matches = [image for image in images if not wanted or wanted in image.names or _has_id(image, self._name)]
        if len(matches) == 1:
            return matches[0]
        if not images:
            raise SourceError(_STEP, self._bundle.spelled, "there is no image in it")
        has = ", ".join(sorted({name for image in images for name in image.names})) or "no names"
        cause = f"{len(matches)} images in it match" if matches else f"no image in it is called {self._name!a}"
        raise SourceError(_STEP, self._bundle.spelled, cause, f"it has {has}")

    def _own_manifest(self, config_digest: str) -> Manifest | None:
        """The manifest that the archive itself has for a config, if it is an OCI layout with all of its blobs."""
        if self._bundle.size(INDEX_FILE) is None:
            return None
        try:
            for entry in OciLayout(self._bundle, "", "").entries():
                raw = self._bundle.read(blob_name(entry.digest))
                verify_bytes(raw, entry.digest, "manifest")
                found = parse_manifest(raw, entry.media_type, entry.digest)
                if (
                    isinstance(found, Manifest)
                    and found.config.digest == config_digest
                    and all(self._bundle.size(blob_name(layer.digest)) == layer.size for layer in found.layers)
                ):
                    return found
        except (SourceError, ManifestError):
            pass  # its other half, manifest.json, is complete without it
        return None

    def _made_up(self, saved: SavedImage, config: ImageConfig) -> Manifest:
        """A manifest for an image that has none: a schema 2 one over the layer files as they are."""
        if len(saved.layers) != len(config.diff_ids):
            cause = f"{len(saved.layers)} layers, and {len(config.diff_ids)} diff IDs in its config"
            raise SourceError(_STEP, self._bundle.spelled, cause)
        pairs = zip(saved.layers, config.diff_ids, strict=True)
        layers = [self._layer(name, diff_id) for name, diff_id in pairs]
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG, "size": len(config.raw), "digest": config.digest},
            "layers": layers,
        }
        manifest = parse_manifest(json.dumps(document).encode(), DOCKER_MANIFEST)
        if not isinstance(manifest, Manifest):
            raise TypeError("a manifest with layers was read as an index")
        return manifest

    def _layer(self, name: str, diff_id: str) -> dict[str, Any]:
        """The descriptor of a layer file: its digest is the diff ID, unless someone compressed it."""
        size = self._bundle.size(name)
        if size is None:
            raise self._bundle.missing(name)
        head = next(self._bundle.chunks(name), b"")
        media_type, digest = DOCKER_LAYER, diff_id
        if head.startswith((_GZIP_MAGIC, _ZSTD_MAGIC)):
            sha256 = hashlib.sha256()
            for chunk in self._bundle.chunks(name):
                sha256.update(chunk)
            digest = "sha256:" + sha256.hexdigest()
            media_type += ".gzip" if head.startswith(_GZIP_MAGIC) else ".zstd"
        self._files[digest] = name
        return {"mediaType": media_type, "size": size, "digest": digest}


def _saved_image(node: Node) -> SavedImage:
    names = []
    for name in node.texts("RepoTags", _MAX_IMAGES):
        try:
            names.append(str(Reference.parse(name)))
        except ImageNameError:
            continue  # "<none>:<none>", and names that only other tools can type
    return SavedImage(node.text("Config"), node.texts("Layers", MAX_LAYERS), tuple(names))


def _full(name: str) -> str:
    try:
        return str(Reference.parse(name))
    except ImageNameError:
        return name


def _has_id(image: SavedImage, name: str) -> bool:
    digits = image.config.removesuffix(".json").rpartition("/")[2]
    return bool(name) and digits == name.removeprefix("sha256:")
