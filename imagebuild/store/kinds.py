"""Kinds of files that layers become, which are part of the files' names: another converter makes other files."""

from __future__ import annotations

#: Raised whenever the image made from the same layer changes, so that stores make theirs anew.
CONVERTER_VERSION = 1

LAYER_KIND = f"v{CONVERTER_VERSION}"
VERITY_KIND = f"v{CONVERTER_VERSION}-verity"  # with a dm-verity hash tree behind the file system
PATCH_KIND = f"p{CONVERTER_VERSION}"
VERITY_PATCH_KIND = f"p{CONVERTER_VERSION}-verity"  # the same of a patch (patch_store.py)
