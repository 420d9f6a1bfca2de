"""From a name to an image in the store.

    image = imagebuild.pull("debian:12-slim")
    with store.pin(image) as lease:
        qemu(disk=image.disk(), pass_fds=[lease.fileno()])

Layers come side by side, each in one pass from the source to its file system; only what the store has not is touched.
An error or an interrupt leaves the store as it was, but for layers that were already finished: they are whole, and the
next attempt begins with them.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from imagebuild.errors import StoreError
from imagebuild.home import images
from imagebuild.oci.platforms import Platform
from imagebuild.sources.spelling import is_local
from imagebuild.store.image import Image
from imagebuild.store.store import Store
from imagebuild.transfer.progress import Report, silent

if TYPE_CHECKING:
    from imagebuild.registry.settings import RegistrySettings

_SHORT_ID = 12  # digits of an image ID that cannot be meant as a name; Docker shows as many


class PullPolicy(Enum):
    """When to ask the registry: if the image is not here; in any case; never."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


def pull(
    name: str,
    *,
    store: Store | None = None,
    platform: Platform | str | None = None,
    policy: PullPolicy = PullPolicy.MISSING,
    progress: Report = silent,
    settings: RegistrySettings | None = None,
    keep_blobs: bool = False,
    verity: bool = False,
) -> Image:
    """Have the image that ``name`` means in the store.  Raises OperationError, whose text says what to do.

    ``name`` is a registry reference, an image ID that is here, or one of the forms of spelling.py.  ``store`` is the
    user's own if not given, ``platform`` this host's, ``settings`` what the user has set.  ``keep_blobs`` also stores
    the layers as they came, for ``save`` and ``push`` without the registry.  ``verity`` puts a
    dm-verity hash tree behind each layer.  ``progress`` is called from several threads.
    """
    store = store or Store(images())
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform or Platform.host()
    if policy is PullPolicy.NEVER or (policy is PullPolicy.MISSING and not is_local(name)):
        found = stored(store, name, wanted, keep_blobs=keep_blobs, verity=verity)
        if found:
            return found
    if policy is PullPolicy.NEVER:
        raise StoreError("find image", name, f"not in the store for {wanted}", "pull it, or allow pulling")
    # What came before is in every start of a machine, and what follows only if the image is not in the store.
    from imagebuild.sources.open_source import open_source
    from imagebuild.transfer.fetch import fetch

    with open_source(name, settings=settings, spool=store.folder("tmp")) as source:
        return fetch(source, store, platform=wanted, progress=progress, keep_blobs=keep_blobs, verity=verity)


def stored(
    store: Store, name: str, wanted: Platform, *, keep_blobs: bool = False, verity: bool = False
) -> Image | None:
    """The image of this name if the store has it whole and it is for this platform."""
    found = store.find(name)
    if found is None or not store.is_whole(found):
        return None
    digits = name.rpartition("@")[2].removeprefix("sha256:")
    if found.reference == found.digest and len(digits) < _SHORT_ID:
        return None  # a few digits that happen to begin an ID: the user means a name
    architecture = found.config.platform.architecture
    if architecture and not wanted.runs(found.config.platform):
        return None
    if keep_blobs and not all(store.has_blob(layer.digest) for layer in found.manifest.layers):
        return None
    if verity and not all(layer.verity_root for layer in found.layers):
        return None
    return found
