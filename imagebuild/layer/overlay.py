"""What overlayfs shows when images are stacked, found by reading the images, without a mount."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imagebuild.layer.entry import Kind
from imagebuild.layer.erofs_reader import ErofsReader, Inode
from imagebuild.layer.tree import MAX_LINKS


@dataclass(frozen=True)
class Found:
    """A file, and the image that it comes from; of a merged directory, the uppermost."""

    image: ErofsReader
    inode: Inode
    #: Where it is without symbolic links on the way.
    path: bytes


class Overlay:
    """Images, lowest first, looked at as one tree."""

    def __init__(self, images: Sequence[ErofsReader]) -> None:
        self._images = images[::-1]
        self._names: dict[tuple[int, int], dict[bytes, int]] = {}

    def find(self, path: bytes) -> Found | None:
        """What is at *path*: symbolic links on the way are followed inside the tree, the last part is not."""
        trail: list[tuple[bytes, list[Found]]] = [(b"", self._roots())]
        todo = _steps(path)
        links = 0
        while todo:
            name = todo.pop()
            if name == b"..":
                trail = trail[:-1] or trail
                continue
            where, here = trail[-1]
            found = self._child(here, name, where + b"/" + name if where else name)
            if not found:
                return None
            first = found[0].inode.entry
            if first.kind is Kind.DIRECTORY:
                trail.append((found[0].path, found))
            elif not todo:
                return found[0]
            elif first.kind is not Kind.SYMLINK or links >= MAX_LINKS:
                return None
            else:
                links += 1
                if first.link.startswith(b"/"):
                    del trail[1:]
                todo += _steps(first.link)
        return trail[-1][1][0]

    def root_names(self) -> set[bytes]:
        """All names in the root directory, whiteouts too."""
        return {name for root in self._roots() for name in self._children(root)}

    def _roots(self) -> list[Found]:
        return [Found(image, image.root(), b"") for image in self._images]

    def _children(self, directory: Found) -> dict[bytes, int]:
        key = (id(directory.image), directory.inode.nid)
        if key not in self._names:
            self._names[key] = directory.image.children(directory.inode)
        return self._names[key]

    def _child(self, directories: list[Found], name: bytes, path: bytes) -> list[Found]:
        """What has *name* in directories that merge, uppermost first; several only if they merge, too."""
        merged: list[Found] = []
        for directory in directories:
            nid = self._children(directory).get(name)
            if nid is None:
                continue
            inode = directory.image.inode(nid)
            if inode.is_whiteout or (merged and not inode.is_directory):
                break
            merged.append(Found(directory.image, inode, path))
            if not inode.is_directory or inode.is_opaque:
                break
        return merged


def _steps(path: bytes) -> list[bytes]:
    """The components of *path*, last first."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
