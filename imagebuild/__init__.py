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
    from .errors import OperationError
    from .image import Image, Layer
    from .platforms import Platform
    from .progress import Progress
    from .pulling import PullPolicy, pull
    from .reference import Reference
    from .settings import RegistrySettings
    from .store import Store

_HOMES = {
    "Image": "image",
    "Layer": "image",
    "OperationError": "errors",
    "Platform": "platforms",
    "Progress": "progress",
    "PullPolicy": "pulling",
    "Reference": "reference",
    "RegistrySettings": "settings",
    "Store": "store",
    "pull": "pulling",
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
