"""Sending a stored image to a registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from imagebuild.oci.manifest import Descriptor
from imagebuild.oci.reference import Reference
from imagebuild.registry.registry import Registry
from imagebuild.registry.settings import RegistrySettings
from imagebuild.store.image import Image
from imagebuild.store.store import Store
from imagebuild.transfer.image_blobs import ImageBlobs
from imagebuild.transfer.parallel import Stop, run_all
from imagebuild.transfer.progress import Phase, Progress, Report, silent

_WORKERS = 3  # as Docker: more uploads at once only share the line


def push(
    store: Store,
    image: Image,
    reference: Reference,
    *,
    settings: RegistrySettings | None = None,
    progress: Report = silent,
) -> str:
    """Send ``image`` to the registry under ``reference``; its digest there.  Raises OperationError.

    What the registry has, here or in the repository the image came from, is not sent.  Layers that were not kept are
    fetched from where they came, when it turns out that they are needed.
    """
    with (
        store.pin(image),
        store.workspace() as space,
        ImageBlobs(store, image, settings) as blobs,
        Registry(settings) as registry,
    ):
        blobs.check()
        origin = blobs.origin()
        mount_from = origin.repository if origin and origin.registry == reference.registry else ""
        stop = Stop()

        def path_of(descriptor: Descriptor) -> Path:
            config = descriptor == image.manifest.config
            return store.blob_path(descriptor.digest) if config else blobs.file(descriptor, space)

        def job(descriptor: Descriptor) -> Callable[[], None]:
            def run() -> None:
                stop.check()
                progress(Progress(descriptor.digest, Phase.RUNNING, 0, descriptor.size))
                registry.push_blob(reference, descriptor, lambda: path_of(descriptor).open("rb"), mount_from)
                progress(Progress(descriptor.digest, Phase.DONE, descriptor.size, descriptor.size))

            return run

        every = {one.digest: one for one in (*image.manifest.layers, image.manifest.config)}
        for one in every.values():
            progress(Progress(one.digest, Phase.QUEUED, 0, one.size))
        run_all([job(one) for one in every.values()], _WORKERS, stop)
        return registry.push_manifest(reference, image.manifest.raw, image.manifest.media_type)
