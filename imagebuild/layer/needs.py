"""What one layer leaves to be settled with the layers below it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What can only be settled with the lower layers at hand.  Paths are clean and relative to the root."""

    #: (name, target): `name` is to be the same file as `target`, which is in a lower layer.
    links: tuple[tuple[bytes, bytes], ...] = ()
    #: Directories that entries lie in but no entry describes, parents first.  The root is never among them: its
    #: attributes come from the writable layer on top.
    parents: tuple[bytes, ...] = ()
    #: An opaque whiteout of the root: overlayfs has no such thing.
    opaque_root: bool = False

    def __bool__(self) -> bool:
        return bool(self.links or self.parents or self.opaque_root)
