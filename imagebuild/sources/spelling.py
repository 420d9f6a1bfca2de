"""The ways to write where an image is.

busybox, host:5000/name@sha256:...   a registry
oci:FOLDER[:TAG]                     an OCI layout in a folder
oci-archive:FILE[:TAG]               the same in a tar archive
docker-archive:FILE[:NAME]           what ``docker save`` writes, old and new
-                                    either archive on standard input
"""

from __future__ import annotations

from pathlib import Path

from imagebuild.errors import SourceError

STEP = "open image"
OCI, OCI_ARCHIVE, DOCKER_ARCHIVE, STDIN = "oci", "oci-archive", "docker-archive", "-"


def is_local(spelled: str) -> bool:
    """Whether this names a folder, an archive or standard input, and not an image in a registry."""
    scheme, colon, _ = spelled.partition(":")
    return spelled == STDIN or (bool(colon) and scheme in (OCI, OCI_ARCHIVE, DOCKER_ARCHIVE))


def split_name(rest: str, *, want_folder: bool) -> tuple[Path, str]:
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
        STEP, rest, f"there is no {what} {first!a}", f"write it as {what.upper()} or {what.upper()}:NAME"
    )
