"""Bringing an image that a source has into the store: layers side by side, each in one pass, only those not there."""

from __future__ import annotations

import os
from contextlib import ExitStack

from imagebuild.sources.source import Source, SourceImage
from imagebuild.store.image import Image, LayerRecord
from imagebuild.store.layer_store import LayerJob
from imagebuild.store.lease import Needs
from imagebuild.store.patch_store import patched
from imagebuild.store.store import Store
from imagebuild.transfer.parallel import Stop, run_all
from imagebuild.transfer.progress import Phase, Progress, Report

# One thread more than processors, so that these stay busy while a layer waits for the network; more than four only
# costs memory (some 50 MB each at worst).
_MAX_WORKERS = 4


def bring(
    source: Source,
    found: SourceImage,
    records: list[LayerRecord],
    store: Store,
    progress: Report,
    *,
    kind: str,
    keep_blobs: bool,
) -> Image:
    """The image ``found`` in ``source``, of these layers, whose files are of this kind."""
    with ExitStack() as stack:
        stack.enter_context(store.lease(_needs(found, records)))
        _fetch_layers(source, found, store, kind, progress, keep_blobs=keep_blobs)
        records = patched(store, records, lambda key: stack.enter_context(store.lease(Needs(layers=frozenset([key])))))
        return store.add(
            found.manifest, found.config, records, digest=found.digest, origin=found.origin, names=found.names
        )


def _fetch_layers(
    source: Source, found: SourceImage, store: Store, kind: str, progress: Report, *, keep_blobs: bool
) -> None:
    stop = Stop()
    jobs = {
        (layer.digest if keep_blobs else diff_id): LayerJob(
            store, layer, diff_id, kind, source.blob, keep_blobs, stop, progress
        )
        for layer, diff_id in zip(found.manifest.layers, found.config.diff_ids, strict=True)
    }
    # The largest first: begun last it would run alone at the end.
    order = sorted(jobs.values(), key=lambda job: -job.descriptor.size)
    for job in order:
        progress(Progress(job.descriptor.digest, Phase.QUEUED, 0, job.descriptor.size))
    workers = min(_MAX_WORKERS, (os.cpu_count() or 1) + 1)
    run_all([job.run for job in order], workers, stop)


def _needs(found: SourceImage, records: list[LayerRecord]) -> Needs:
    return Needs(
        layers=frozenset(record.key for record in records),
        blobs=frozenset([found.digest, found.manifest.config.digest, *(record.digest for record in records)]),
        images=frozenset([found.digest]),
    )
