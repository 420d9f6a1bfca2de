"""Archives of ``docker save`` before Docker 1.10 (Docker image specification v1.0): layers that know their parents.

    repositories     {"busybox": {"latest": "ID"}}
    ID/json          one layer: its parent, and the image's settings as they were after it
    ID/layer.tar     its files

Nothing in them has a digest.  The config that such an image gets here is what Docker 1.10 gave it on loading: the
settings of the topmost layer, the digests of all, and a history of one entry a layer.  Same archive, same config.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from imagebuild.errors import ImageNameError, SourceError
from imagebuild.jsoncheck import Node, load_document
from imagebuild.oci.manifest import MAX_LAYERS
from imagebuild.oci.reference import Reference
from imagebuild.sources.bundle import Bundle

REPOSITORIES_FILE = "repositories"
_MAX_NAMES = 1000
_KEPT = ("architecture", "os", "created", "author", "docker_version", "config")  # of the topmost layer's settings
_STEP = "read docker archive"


@dataclass(frozen=True)
class OldImage:
    """One image: the IDs of its layers, lowest first, and what it is called."""

    ids: tuple[str, ...]
    names: tuple[str, ...]

    def layer_files(self) -> tuple[str, ...]:
        """The archive's names of the layers' files."""
        return tuple(f"{one}/layer.tar" for one in self.ids)


def old_images(bundle: Bundle) -> list[OldImage]:
    """All images that ``repositories`` names."""
    root = load_document(bundle.read(REPOSITORIES_FILE), REPOSITORIES_FILE)
    names: dict[str, list[str]] = {}
    for repository in sorted(root.fields)[:_MAX_NAMES]:
        for tag, top in root.text_map(repository, _MAX_NAMES).items():
            found = names.setdefault(top, [])
            try:
                found.append(str(Reference.parse(f"{repository}:{tag}")))
            except ImageNameError:
                continue  # a name that only an old Docker could type
    return [OldImage(_chain(bundle, top), tuple(found)) for top, found in names.items()]


def made_up_config(bundle: Bundle, ids: tuple[str, ...]) -> bytes:
    """The image config for these layers, lowest first; reads them all, for their digests."""
    settings = [_settings(bundle, one) for one in ids]
    top = settings[-1].fields
    document: dict[str, Any] = {key: top[key] for key in _KEPT if key in top}
    document["rootfs"] = {"type": "layers", "diff_ids": [_diff_id(bundle, f"{one}/layer.tar") for one in ids]}
    document["history"] = [_history(node) for node in settings]
    return json.dumps(document, sort_keys=True).encode()


def _chain(bundle: Bundle, top: str) -> tuple[str, ...]:
    """The layer ``top`` and all below it, lowest first."""
    ids: list[str] = []
    following = top
    while following:
        if following in ids or len(ids) == MAX_LAYERS:
            cause = f"the layers below {top[:64]!a} have no end"
            raise SourceError(_STEP, bundle.spelled, cause, "the archive is damaged: save it again")
        ids.append(following)
        following = _settings(bundle, following).text("parent")
    return tuple(reversed(ids))


def _settings(bundle: Bundle, layer: str) -> Node:
    name = f"{layer}/json"
    return load_document(bundle.read(name), name)


def _diff_id(bundle: Bundle, name: str) -> str:
    sha256 = hashlib.sha256()
    for chunk in bundle.chunks(name):
        sha256.update(chunk)
    return f"sha256:{sha256.hexdigest()}"


def _history(node: Node) -> dict[str, str]:
    words = node.child("container_config").texts("Cmd", _MAX_NAMES)
    entry = {
        "created": node.text("created"),
        "created_by": " ".join(words),
        "author": node.text("author"),
        "comment": node.text("comment"),
    }
    return {key: value for key, value in entry.items() if value}
