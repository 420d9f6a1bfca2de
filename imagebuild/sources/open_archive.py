"""From what a user writes to the archive that it means, and to the images in it; spelling.py lists the ways."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from imagebuild.errors import SourceError
from imagebuild.sources.docker_archive import MANIFEST_FILE, DockerArchive
from imagebuild.sources.oci_layout import LAYOUT_FILE, OciLayout
from imagebuild.sources.source import Source
from imagebuild.sources.spelling import OCI_ARCHIVE, STDIN, STEP, is_local, split_name
from imagebuild.sources.tar_bundle import TarBundle, open_archive


def archive_source(spelled: str, spool: Path | None) -> Source:
    """The source in an archive that ``spelled`` means."""
    if spelled == STDIN:
        return _either(open_bundle(spelled, spool))
    scheme, _, rest = spelled.partition(":")
    path, name = split_name(rest, want_folder=False)
    fallback = f"{scheme}:{path.absolute()}" + (f":{name}" if name else "")
    bundle = open_bundle(spelled, spool)
    if scheme == OCI_ARCHIVE:
        return OciLayout(bundle, name, fallback)
    return DockerArchive(bundle, name, fallback)


def open_bundle(spelled: str, spool: Path | None = None) -> TarBundle:
    """The files of an archive, given as a user spells it or as a plain path."""
    if spelled == STDIN:
        # A descriptor of our own, so that closing the archive does not close the program's standard input.
        file: IO[bytes] = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    else:
        path, _ = split_name(spelled.partition(":")[2] if is_local(spelled) else spelled, want_folder=False)
        try:
            file = path.open("rb")
        except OSError as error:
            raise SourceError(STEP, spelled, f"{path}: {error.strerror}") from error
    return open_archive(file, spelled, spool or Path(tempfile.gettempdir()))


def all_images(bundle: TarBundle) -> Iterator[Source]:
    """Every image of an archive, each as a source of its own; they share ``bundle``, which the caller closes."""
    if bundle.size(MANIFEST_FILE) is None and bundle.size(LAYOUT_FILE) is not None:
        for entry in OciLayout(bundle, "", "").entries():
            yield OciLayout(bundle, entry.digest, "")
        return
    for image in DockerArchive(bundle, "", "").images():
        yield DockerArchive(bundle, image.config.removesuffix(".json").rpartition("/")[2], "")


def _either(bundle: TarBundle) -> Source:
    """Docker's format where there is one, because it has the whole names."""
    if bundle.size(MANIFEST_FILE) is None and bundle.size(LAYOUT_FILE) is not None:
        return OciLayout(bundle, "", "")
    return DockerArchive(bundle, "", "")
