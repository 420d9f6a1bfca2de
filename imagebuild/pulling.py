"""From a name to an image in the store.

    image = imagebuild.pull("debian:12-slim")
    with store.pin(image) as lease:
        qemu(disk=image.disk(), pass_fds=[lease.fileno()])

Layers come side by side, each in one pass from the source to its file system; only what the store has not is touched.
An error or an interrupt leaves the store as it was, but for layers that were already finished: they are whole, and the
next attempt begins with them.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from enum import Enum

from .errors import StoreError
from .home import images
from .image import Image, LayerRecord
from .layer_store import LAYER_KIND, LayerJob
from .lease import Needs
from .open_source import is_local, open_source
from .parallel import Stop, run_all
from .patch_store import patched
from .platforms import Platform
from .progress import Phase, Progress, Report, silent
from .settings import RegistrySettings
from .source import Source, SourceImage
from .store import Store, layer_key

# One thread more than processors, so that these stay busy while a layer waits for the network; more than four only
# costs memory (some 50 MB each at worst).
_MAX_WORKERS = 4
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
) -> Image:
    """Have the image that ``name`` means in the store.  Raises OperationError, whose text says what to do.

    ``name`` is a registry reference, an image ID that is here, or one of the forms of source.py.  ``store`` is the
    user's own if not given, ``platform`` this host's.  ``keep_blobs`` also stores the layers as they came, for ``save``
    and ``push`` without the registry.  ``progress`` is called from several threads.
    """
    store = store or Store(images())
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform or Platform.host()
    if policy is PullPolicy.NEVER or (policy is PullPolicy.MISSING and not is_local(name)):
        found = stored(store, name, wanted, keep_blobs=keep_blobs)
        if found:
            return found
    if policy is PullPolicy.NEVER:
        raise StoreError("find image", name, f"not in the store for {wanted}", "pull it, or allow pulling")
    with open_source(name, settings=settings, spool=store.folder("tmp")) as source:
        return fetch(source, store, platform=wanted, progress=progress, keep_blobs=keep_blobs)


def stored(store: Store, name: str, wanted: Platform, *, keep_blobs: bool = False) -> Image | None:
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
    return found


def fetch(
    source: Source,
    store: Store,
    *,
    platform: Platform | None = None,
    progress: Report = silent,
    keep_blobs: bool = False,
) -> Image:
    """Bring a source's image into the store, and give it the names that the source has for it."""
    found = source.resolve(platform)
    records = _records(found)
    with ExitStack() as stack:
        stack.enter_context(store.lease(_needs(found, records)))
        _fetch_layers(source, found, store, progress, keep_blobs)
        records = patched(store, records, lambda key: stack.enter_context(store.lease(Needs(layers=frozenset([key])))))
        return store.add(
            found.manifest, found.config, records, digest=found.digest, origin=found.origin, names=found.names
        )


def _fetch_layers(source: Source, found: SourceImage, store: Store, progress: Report, keep_blobs: bool) -> None:
    stop = Stop()
    jobs = {
        (layer.digest if keep_blobs else diff_id): LayerJob(
            store, layer, diff_id, source.blob, keep_blobs, stop, progress
        )
        for layer, diff_id in zip(found.manifest.layers, found.config.diff_ids, strict=True)
    }
    # The largest first: begun last it would run alone at the end.
    order = sorted(jobs.values(), key=lambda job: -job.descriptor.size)
    for job in order:
        progress(Progress(job.descriptor.digest, Phase.QUEUED, 0, job.descriptor.size))
    workers = min(_MAX_WORKERS, (os.cpu_count() or 1) + 1)
    run_all([job.run for job in order], workers, stop)


def _records(found: SourceImage) -> list[LayerRecord]:
    return [
        LayerRecord(diff_id, layer_key(diff_id, LAYER_KIND), layer.digest, layer.size, layer.media_type)
        for layer, diff_id in zip(found.manifest.layers, found.config.diff_ids, strict=True)
    ]


def _needs(found: SourceImage, records: list[LayerRecord]) -> Needs:
    return Needs(
        layers=frozenset(record.key for record in records),
        blobs=frozenset([found.digest, found.manifest.config.digest, *(record.digest for record in records)]),
        images=frozenset([found.digest]),
    )
