"""What one layer leaves to be settled with the layers below it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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

    def to_json(self) -> dict[str, Any]:
        """As values that `json` can keep; bytes that are no UTF-8 become lone surrogates."""
        return {
            "links": [[_text(name), _text(target)] for name, target in self.links],
            "parents": [_text(path) for path in self.parents],
            "opaque_root": self.opaque_root,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Needs:
        """What `to_json` made."""
        return cls(
            tuple((_bytes(name), _bytes(target)) for name, target in value["links"]),
            tuple(_bytes(path) for path in value["parents"]),
            bool(value["opaque_root"]),
        )


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")
