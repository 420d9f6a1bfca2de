"""The ways to write where an image is.

busybox, host:5000/name@sha256:...   a registry
oci:FOLDER[:TAG]                     an OCI layout in a folder
oci-archive:FILE[:TAG]               the same in a tar archive
docker-archive:FILE[:NAME]           what ``docker save`` writes, old and new
-                                    either archive on standard input
"""

OCI, OCI_ARCHIVE, DOCKER_ARCHIVE, STDIN = "oci", "oci-archive", "docker-archive", "-"


def is_local(spelled: str) -> bool:
    """Whether this names a folder, an archive or standard input, and not an image in a registry."""
    scheme, colon, _ = spelled.partition(":")
    return spelled == STDIN or (bool(colon) and scheme in (OCI, OCI_ARCHIVE, DOCKER_ARCHIVE))
