"""The patches of an image's layers (patch.py) in the store: made once for each chain of layers that needs one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from imagebuild.errors import StoreError
from imagebuild.files import explained
from imagebuild.layer.patch import settle
from imagebuild.store.image import LayerRecord
from imagebuild.store.kinds import PATCH_KIND, VERITY_PATCH_KIND
from imagebuild.store.layer_store import LayerFacts
from imagebuild.store.store import Store, layer_key


def patched(store: Store, layers: list[LayerRecord], lease: Callable[[str], object]) -> list[LayerRecord]:
    """The layers, lowest first, completed by what is known of their files, and by the patches that some need.

    All layers are in the store, patches are made if they are not.  ``lease`` is called with the name of each patch
    before it is made or relied on.  Of layers that are there twice only the upper counts, as in ``ImageRecord.stack``.
    """
    keys: list[str] = []
    done = []
    for position, layer in enumerate(layers):
        again = any(later.diff_id == layer.diff_id for later in layers[position + 1 :])
        patch = ""
        if not again:
            keys.append(layer.key)
            facts = _facts(store, layer.key)
            if facts.needs and len(keys) > 1:
                patch = _patch(store, keys, facts, lease)
            if patch:
                keys.append(patch)
            layer = layer._replace(patch=patch, data_size=facts.data_size, verity_root=facts.verity_root)  # noqa: PLW2901
            if patch:
                of_patch = _facts(store, patch)
                layer = layer._replace(patch_size=of_patch.data_size, patch_root=of_patch.verity_root)  # noqa: PLW2901
        done.append(layer)
    return done


def _facts(store: Store, key: str) -> LayerFacts:
    try:
        return LayerFacts.from_json(store.facts_path(key).read_bytes())
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "imagebuild verify --repair, then pull again"
        raise StoreError("read layer", key, f"its facts are damaged: {error}", remedy) from error


def _patch(store: Store, keys: list[str], facts: LayerFacts, lease: Callable[[str], object]) -> str:
    """The name of the patch for the last of ``keys``, whose facts are given; empty if there is nothing to patch.

    A patch is as well protected as its layer: with a hash tree if that has one.
    """
    chain = "sha256:" + hashlib.sha256("\n".join(keys).encode()).hexdigest()
    verity = bool(facts.verity_root)
    key = layer_key(chain, VERITY_PATCH_KIND if verity else PATCH_KIND)
    lease(key)
    with explained("patch layer", keys[-1]), store.layer_lock(key, lambda: None):
        if store.layer_path(key).exists():
            return key
        with store.workspace() as space:
            image: Path = space / "patch.erofs"
            made = settle([store.layer_path(one) for one in keys], facts.needs, image, verity=verity)
            if made is None:
                return ""
            store.adopt_layer(image, key, LayerFacts.of_patch(image, made).to_json())
    return key
