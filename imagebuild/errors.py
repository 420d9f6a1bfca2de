"""What can go wrong on the host, as one tree.

    OperationError
    ├── ImageNameError     an image name that is not one
    ├── RegistryError      a registry said no, or nothing
    │   ├── AuthError      ... because of who we are (401, 403)
    │   └── NotFoundError  ... because it does not have it (404)
    ├── ManifestError      a manifest, index or image config that is malformed, or offers nothing for us
    ├── SourceError        a folder or archive that cannot be read as an image
    ├── LayerError         a layer that is not what its manifest promises, or that no disk can hold
    ├── StoreError         the local store: full, locked, damaged
    ├── DiskError          a disk that cannot be made
    ├── KernelError        a kernel or a module that is missing or cannot be built
    ├── InitramfsError     a boot image that cannot be assembled
    └── MediaError         an ISO or OVA that cannot be made

Every error answers four questions, because a person reads it who did not write this: at which *step*, with which
*subject* (a digest, a path, a reference), what was the *cause*, and what to do about it (*remedy*).
"""

from __future__ import annotations


class OperationError(Exception):
    """A step failed.  ``str()`` is one sentence: ``step: subject: cause (remedy)``."""

    def __init__(self, step: str, subject: str, cause: str, remedy: str = "") -> None:
        self.step, self.subject, self.cause, self.remedy = step, subject, cause, remedy
        super().__init__(step, subject, cause, remedy)

    def __str__(self) -> str:
        sentence = ": ".join(part for part in (self.step, self.subject, self.cause) if part)
        return f"{sentence} ({self.remedy})" if self.remedy else sentence


class ImageNameError(OperationError):
    """An image name that does not follow the grammar of distribution/reference."""


class RegistryError(OperationError):
    """A registry refused, failed, stalled or answered something else than it should."""


class AuthError(RegistryError):
    """The registry wants (other) credentials: 401 or 403."""


class NotFoundError(RegistryError):
    """No such repository, tag, manifest or blob: 404."""


class ManifestError(OperationError):
    """A manifest, index or image config that is malformed, hostile, obsolete, or for another platform."""


class SourceError(OperationError):
    """An OCI layout or an archive that is missing, damaged, or has not the image that was asked for."""


class LayerError(OperationError):
    """A layer that is truncated, corrupt, oversized, hostile, or not what its digest says."""


class StoreError(OperationError):
    """The local store cannot do it: no space, no permission, damaged content."""


class DiskError(OperationError):
    """A disk image that cannot be written or described."""


class KernelError(OperationError):
    """A kernel or kernel module that is missing, or cannot be fetched or built."""


class InitramfsError(OperationError):
    """A boot image that cannot be assembled."""


class MediaError(OperationError):
    """An ISO or OVA that cannot be made: its parts, its size or its spec do not fit."""
