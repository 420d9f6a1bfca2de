"""From a source to an image in the store; if that has the whole of it already, nothing is read but metadata."""

from __future__ import annotations

from imagebuild.errors import StoreError
from imagebuild.oci.platforms import Platform
from imagebuild.sources.source import Source, SourceImage
from imagebuild.store.image import Image, LayerRecord
from imagebuild.store.kinds import LAYER_KIND, VERITY_KIND
from imagebuild.store.store import Store, layer_key
from imagebuild.transfer.progress import Phase, Progress, Report, silent


def fetch(
    source: Source,
    store: Store,
    *,
    platform: Platform | None = None,
    progress: Report = silent,
    keep_blobs: bool = False,
    verity: bool = False,
) -> Image:
    """Bring a source's image into the store, and give it the names that the source has for it."""
    found = source.resolve(platform)
    kind = VERITY_KIND if verity else LAYER_KIND
    records = _records(found, kind)
    known = _known(store, found, records, keep_blobs=keep_blobs)
    if known is not None:
        for layer in found.manifest.layers:
            progress(Progress(layer.digest, Phase.PRESENT, layer.size, layer.size))
        return known
    from imagebuild.transfer.bring import bring  # late: a folder is asked at each start, and has seldom anything new

    return bring(source, found, records, store, progress, kind=kind, keep_blobs=keep_blobs)


def _known(store: Store, found: SourceImage, records: list[LayerRecord], *, keep_blobs: bool) -> Image | None:
    """The image as the store has it, if there is nothing to do: whole, of these very files, known by all its names."""
    try:
        image = store.get(found.digest, found.names[0] if found.names else "")
        record = store.record(image)
    except StoreError:  # not there, or damaged: it is brought again
        return None
    if [layer.key for layer in record.layers] != [layer.key for layer in records] or not store.is_whole(image):
        return None
    if (found.origin or record.origin) != record.origin or any(store.named(one) != found.digest for one in found.names):
        return None
    if keep_blobs and not all(store.has_blob(layer.digest) for layer in found.manifest.layers):
        return None
    return image


def _records(found: SourceImage, kind: str) -> list[LayerRecord]:
    return [
        LayerRecord(diff_id, layer_key(diff_id, kind), layer.digest, layer.size, layer.media_type)
        for layer, diff_id in zip(found.manifest.layers, found.config.diff_ids, strict=True)
    ]
