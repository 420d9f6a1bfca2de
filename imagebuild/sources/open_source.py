"""From what a user writes to the source that has it; source.py lists the ways to write it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from imagebuild.errors import SourceError
from imagebuild.oci.reference import Reference
from imagebuild.registry.settings import RegistrySettings
from imagebuild.sources.bundle import FolderBundle, TarBundle, open_archive
from imagebuild.sources.docker_archive import MANIFEST_FILE, DockerArchive
from imagebuild.sources.oci_layout import LAYOUT_FILE, OciLayout
from imagebuild.sources.source import Source
from imagebuild.sources.spelling import OCI, OCI_ARCHIVE, STDIN, is_local

_STEP = "open image"


def open_source(spelled: str, *, settings: RegistrySettings | None = None, spool: Path | None = None) -> Source:
    """The source that ``spelled`` means.  Raises OperationError if it is none, or cannot be read.

    ``spool`` is a folder for archives that must be copied before they can be read (compressed, or from a pipe).
    """
    if not is_local(spelled):
        from imagebuild.sources.registry_source import RegistrySource  # the HTTP client takes long to import

        return RegistrySource(Reference.parse(spelled), settings)
    if spelled == STDIN:
        return _from_archive(open_bundle(spelled, spool), "", "")
    scheme, _, rest = spelled.partition(":")
    path, name = _split(rest, want_folder=scheme == OCI)
    fallback = f"{scheme}:{path.absolute()}" + (f":{name}" if name else "")
    if scheme == OCI:
        return OciLayout(FolderBundle(path, spelled), name, fallback)
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
        path, _ = _split(spelled.partition(":")[2] if is_local(spelled) else spelled, want_folder=False)
        try:
            file = path.open("rb")
        except OSError as error:
            raise SourceError(_STEP, spelled, f"{path}: {error.strerror}") from error
    return open_archive(file, spelled, spool or Path(tempfile.gettempdir()))


def all_images(bundle: TarBundle) -> Iterator[Source]:
    """Every image of an archive, each as a source of its own; they share ``bundle``, which the caller closes."""
    if bundle.size(MANIFEST_FILE) is None and bundle.size(LAYOUT_FILE) is not None:
        for entry in OciLayout(bundle, "", "").entries():
            yield OciLayout(bundle, entry.digest, "")
        return
    for image in DockerArchive(bundle, "", "").images():
        yield DockerArchive(bundle, image.config.removesuffix(".json").rpartition("/")[2], "")


def _from_archive(bundle: TarBundle, name: str, fallback: str) -> Source:
    """Docker's format where there is one, because it has the whole names."""
    if bundle.size(MANIFEST_FILE) is None and bundle.size(LAYOUT_FILE) is not None:
        return OciLayout(bundle, name, fallback)
    return DockerArchive(bundle, name, fallback)


def _split(rest: str, *, want_folder: bool) -> tuple[Path, str]:
    """Cut ``PATH[:NAME]`` where the path exists; both may hold colons, and the longest path wins."""
    head, name = rest, ""
    while True:
        path = Path(head)
        if path.is_dir() if want_folder else path.exists() and not path.is_dir():
            return path, name
        head, colon, tail = head.rpartition(":")
        if not colon:
            break
        name = f"{tail}:{name}" if name else tail
    first = rest.partition(":")[0]
    what = "folder" if want_folder else "file"
    raise SourceError(
        _STEP, rest, f"there is no {what} {first!a}", f"write it as {what.upper()} or {what.upper()}:NAME"
    )
