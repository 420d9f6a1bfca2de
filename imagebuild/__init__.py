"""Container images as disks: from a registry, an archive or a folder to something a virtual machine can mount.

    import imagebuild

    image = imagebuild.pull("debian:12-slim")
    print(image.disk())

The names below are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagebuild.errors import OperationError
    from imagebuild.oci.platforms import Platform
    from imagebuild.oci.reference import Reference
    from imagebuild.registry.settings import RegistrySettings
    from imagebuild.store.image import Image, Layer
    from imagebuild.store.store import Store
    from imagebuild.transfer.progress import Progress
    from imagebuild.transfer.pulling import PullPolicy, pull

_HOMES = {
    "Image": "store.image",
    "Layer": "store.image",
    "OperationError": "errors",
    "Platform": "oci.platforms",
    "Progress": "transfer.progress",
    "PullPolicy": "transfer.pulling",
    "Reference": "oci.reference",
    "RegistrySettings": "registry.settings",
    "Store": "store.store",
    "pull": "transfer.pulling",
}

__all__ = [
    "Image",
    "Layer",
    "OperationError",
    "Platform",
    "Progress",
    "PullPolicy",
    "Reference",
    "RegistrySettings",
    "Store",
    "pull",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value
