"""From what a user writes to the source that has it; spelling.py lists the ways to write it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from imagebuild.sources.source import Source
from imagebuild.sources.spelling import OCI, is_local, split_name

if TYPE_CHECKING:
    from imagebuild.registry.settings import RegistrySettings


def open_source(spelled: str, *, settings: RegistrySettings | None = None, spool: Path | None = None) -> Source:
    """The source that ``spelled`` means.  Raises OperationError if it is none, or cannot be read.

    ``settings`` are the user's if not given.  ``spool`` is a folder for archives that must be copied before they can be
    read (compressed, or from a pipe).
    """
    # Each kind is imported when it is asked for: the HTTP client and the readers of archives take long.
    if not is_local(spelled):
        from imagebuild.config_file import load_settings
        from imagebuild.oci.reference import Reference
        from imagebuild.sources.registry_source import RegistrySource

        return RegistrySource(Reference.parse(spelled), settings or load_settings().registries)
    scheme, _, rest = spelled.partition(":")
    if scheme != OCI:
        from imagebuild.sources.open_archive import archive_source

        return archive_source(spelled, spool)
    from imagebuild.sources.bundle import FolderBundle
    from imagebuild.sources.oci_layout import OciLayout

    path, name = split_name(rest, want_folder=True)
    return OciLayout(FolderBundle(path, spelled), name, f"{OCI}:{path.absolute()}" + (f":{name}" if name else ""))
