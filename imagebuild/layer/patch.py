"""Settles what a layer cannot say without the layers below it: a small image that goes right above the layer's own.

A layer is converted knowing nothing of others, so its image can be made in parallel with theirs and shared by all
images that have it.  A few layers need more; `ConvertedLayer.needs` says so, and `settle` then writes the difference:

* *Hard links* to a file of a lower layer.  The file is copied up under both names, as one inode, as a tool does that
  unpacks onto an overlay mount.  (Not under the old name if the layer has something else there.)
* *Implied directories*: ``a/b/file`` without an entry for ``a/b``.  In the layer's image they have default attributes,
  which would cover those of the lower directory; the patch has the lower directory's.  Where the lower layers have a
  symbolic link in that place (``bin -> usr/bin``), the layer meant the directory it leads to: the patch restores the
  link and brings what the layer has there to where it leads.
* *An opaque root*, which overlayfs does not know: the patch has a whiteout for each lower name.

A patch depends on all layers up to its own, so it is kept by chain ID, where a layer is kept by diff ID.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from imagebuild.errors import LayerError, StoreError
from imagebuild.layer.entry import NO_XATTRS, Entry, Kind
from imagebuild.layer.erofs_reader import ErofsReader, Inode
from imagebuild.layer.erofs_writer import ErofsWriter
from imagebuild.layer.limits import Limits
from imagebuild.layer.needs import Needs
from imagebuild.layer.overlay import Found, Overlay
from imagebuild.layer.tree import MAX_LINKS, OPAQUE_WHITEOUT, OPAQUE_XATTR, Tree
from imagebuild.layer.verity import append_tree
from imagebuild.newfile import NewFile

_LABEL = b"patch"


@dataclass(frozen=True)
class WrittenPatch:
    """A patch that was written: size of its file system in bytes, and root (hex) of the hash tree behind it, if any."""

    image_size: int
    verity_root: str = ""


def settle(images: Sequence[Path], needs: Needs, destination: Path, *, verity: bool = False) -> WrittenPatch | None:
    """Write the patch for the last of *images* to *destination*, which is to be stacked right above it.

    *images* are EROFS files, lowest first, patches of lower layers among them.  With *verity* a dm-verity hash tree
    follows the file system.  Returns None if there is nothing to settle after all; no file is written then.  Raises
    `LayerError` if a link leads nowhere, `StoreError` if a file cannot be read or written.
    """
    try:
        return _settle(images, needs, destination, verity)
    except ValueError as error:
        raise LayerError("settle the layer", str(destination), str(error), "have the image rebuilt") from None
    except (LookupError, struct.error) as error:
        raise StoreError(
            "read the image", str(images[-1]), f"it or one below it is damaged ({error})", "remove it and pull again"
        ) from error


def _settle(images: Sequence[Path], needs: Needs, destination: Path, verity: bool) -> WrittenPatch | None:
    with ExitStack() as stack:
        readers = [stack.enter_context(ErofsReader(path)) for path in images]
        file = stack.enter_context(NewFile(destination, "patch of a layer"))
        patch = _Patch(readers, needs, ErofsWriter(file, Limits()))
        patch.settle_parents()
        patch.settle_links()
        patch.settle_root()
        if not patch.tree.root.children:
            return None
        patch.tree.finish()
        identity = hashlib.sha256(b"".join(reader.uuid for reader in readers)).digest()[:16]
        size = patch.writer.finish(patch.tree.root, identity, _LABEL)
        root = append_tree(file, size, identity)[0] if verity else ""
        file.commit()
    return WrittenPatch(size, root)


class _Patch:
    """The patch so far."""

    def __init__(self, images: Sequence[ErofsReader], needs: Needs, writer: ErofsWriter) -> None:
        self.tree = Tree(Limits())
        self.writer = writer
        self._needs = needs
        self._implied = set(needs.parents)
        self._layer = images[-1]
        self._below = Overlay(images[:-1])
        self._merged = Overlay(images)
        self._only = Overlay(images[-1:])
        #: Files that are in the patch, and the first name they have there.
        self._names: dict[tuple[int, int], bytes] = {}
        self._added: dict[bytes, tuple[int, int]] = {}
        #: Implied directories that are symbolic links below, and the directories those lead to.
        self._moved: dict[bytes, bytes] = {}

    # -- implied directories -----------------------------------------------------------------------------------

    def settle_parents(self) -> None:
        """Give implied directories what they are in the lower layers."""
        for path in self._needs.parents:
            if self._relocated(path) != path:
                continue  # went along with a parent
            below = self._below.find(path)
            if below is None:
                continue
            if below.inode.is_directory:
                self._add_directory(path)
            elif below.inode.entry.kind is Kind.SYMLINK:
                self._follow(path, below)

    def _follow(self, path: bytes, link: Found) -> None:
        """Restore the lower symbolic link at *path*; what the layer has there belongs where it leads."""
        target = self._target(path, link.inode.entry.link)
        source = self._only.find(path)
        if source is None or target is None:
            return
        self._moved[path] = target
        self._add_parents(path)
        self._add(path, link)
        self._add_directory(target)
        self._move(source.inode, path, target)

    def _target(self, path: bytes, link: bytes) -> bytes | None:
        """The directory that a lower symbolic link at *path* leads to; None if it is no directory."""
        for _ in range(MAX_LINKS):
            start = b"" if link.startswith(b"/") else path.rpartition(b"/")[0]
            found = self._below.find(start + b"/" + link)
            if found is None or found.inode.entry.kind is not Kind.SYMLINK:
                return found.path if found is not None and found.inode.is_directory else None
            path, link = found.path, found.inode.entry.link
        return None

    def _move(self, directory: Inode, source: bytes, target: bytes) -> None:
        """Bring what is in the layer's *directory* to *target*."""
        for name, nid in sorted(self._layer.children(directory).items()):
            inode = self._layer.inode(nid)
            old, new = source + b"/" + name, target + b"/" + name
            if not inode.is_directory:
                self._add(new, Found(self._layer, inode, old))
                continue
            below = self._below.find(new) if old in self._implied else None
            if below is not None and below.inode.is_directory:
                self._add_directory(new)
            else:
                self._add(new, Found(self._layer, inode, old))
            self._move(inode, old, new)

    def _relocated(self, path: bytes) -> bytes:
        """Where *path* is when the implied directory it lies in turned out to be a symbolic link."""
        for source, target in self._moved.items():
            if path == source or path.startswith(source + b"/"):
                return target + path[len(source) :]
        return path

    # -- hard links --------------------------------------------------------------------------------------------

    def settle_links(self) -> None:
        """Copy up the lower files that the layer links to."""
        for name, target in self._needs.links:
            found = self._merged.find(target)
            shown = found is not None and found.image is not self._layer
            if not shown:
                found = self._below.find(target)
            if found is None or found.inode.is_directory:
                raise LayerError(
                    "link files across layers", name.decode(errors="backslashreplace"),
                    f"it is a hard link to {target!r}, which no lower layer has as a file",
                    "have the image rebuilt: its layers do not fit together",
                )  # fmt: skip
            if shown:
                self._add_parents(found.path)
                self._add(found.path, found)
            path = self._relocated(name)
            self._add_parents(path)
            self._add(path, found)

    # -- the root ----------------------------------------------------------------------------------------------

    def settle_root(self) -> None:
        """Hide what is below an opaque root; directories of the layer itself are opaque already."""
        if not self._needs.opaque_root:
            return
        for name in sorted(self._below.root_names() - self._only.root_names()):
            if name not in self.tree.root.children:
                self.tree.add(Entry(name, Kind.CHAR, 0, 0, 0, 0, 0, 0, b"", 0, 0, NO_XATTRS, None))

    # -- entries -----------------------------------------------------------------------------------------------

    def _add(self, path: bytes, found: Found) -> None:
        """Add a file of an image under *path*, with its data; as a hard link if it has a name here already."""
        key = (id(found.image), found.inode.nid)
        if self._added.get(path) == key:
            return
        self._added[path] = key
        entry = found.inode.entry._replace(name=path)
        first = self._names.setdefault(key, path)
        if first != path and entry.kind is not Kind.DIRECTORY:
            entry = entry._replace(kind=Kind.HARDLINK, link=first, segments=None)
        node = self.tree.add(entry)
        if found.inode.is_opaque:
            self.tree.add(entry._replace(name=path + b"/" + OPAQUE_WHITEOUT, kind=Kind.REGULAR, xattrs=NO_XATTRS))
        if node is None:
            return
        data = found.image.data(found.inode)
        if entry.segments is not None:
            self.writer.store_sparse(node, entry.segments, data)
        else:
            self.writer.store(node, data)
        self.writer.flush()

    def _add_parents(self, path: bytes) -> None:
        """Add the directories that *path* lies in, each as it is to look in the end."""
        parts = path.split(b"/")[:-1]
        for depth in range(1, len(parts) + 1):
            self._add_directory(b"/".join(parts[:depth]))

    def _add_directory(self, path: bytes) -> None:
        """Add a directory, and those it lies in, as the layer describes it, or if it does not, as those below do."""
        if b"/" in path:
            self._add_parents(path)
        found = self._below.find(path) if path in self._implied else None
        if found is None or not found.inode.is_directory:
            found = self._merged.find(path)
        if found is not None and found.inode.is_directory:
            entry = found.inode.entry
            xattrs = {name: value for name, value in entry.xattrs.items() if name != OPAQUE_XATTR}
            self.tree.add(entry._replace(name=path, xattrs=xattrs))
