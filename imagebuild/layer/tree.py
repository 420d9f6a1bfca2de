"""The tree one layer describes, built entry by entry with the rules of OCI's image-spec ``layer.md``.

* Entries apply in order: a later one replaces an earlier one of the same name, directories merge with directories.
* Whiteouts speak about *lower* layers only, so they are kept apart until the end: ``.wh.NAME`` hides a lower NAME
  and leaves one of this layer alone, wherever in the archive either stands.
* overlayfs will do the merging.  It reads a 0:0 character device as "hidden below" and a directory with
  ``trusted.overlay.opaque=y`` as "nothing below shows"; a directory that took the place of something that hid the lower
  one (a file of this layer, a whiteout) is made opaque for the same effect.
* Names are cleaned as Docker and umoci do: absolute ones start at the root of the layer, ``..`` beyond it is refused,
  and symbolic links on the way to a name are followed inside the layer only.
* What a layer alone cannot say is noted in `Needs`: a hard link to a file of a lower layer, and the attributes of
  parent directories the archive does not list.  `imagebuild.layer.patch` settles these once the lower layers are known.
"""

from __future__ import annotations

from imagebuild.layer.entry import NO_XATTRS, Entry, Kind
from imagebuild.layer.limits import NAME_MAX, Limits
from imagebuild.layer.needs import Needs

__all__ = ["Directory", "Needs", "Node", "Tree", "clean"]

_WHITEOUT = b".wh."
OPAQUE_WHITEOUT = b".wh..wh..opq"
#: aufs kept its own bookkeeping under such names; they are no files of the image.
_AUFS = b".wh..wh."

_DEFAULT_DIRECTORY_MODE = 0o755
#: How many symbolic links one name may lead through (Linux's own limit).
MAX_LINKS = 40
#: Linux keeps 12 bits of a device's major number and 20 of its minor number.
_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1
#: Directories remembered by the spelling of their name; archives go through a directory in one run.
_CACHE_SIZE = 4096


NO_DEVICE = (0, 0)
_IMPLICIT = Entry(b"", Kind.DIRECTORY, _DEFAULT_DIRECTORY_MODE, 0, 0, 0, 0, 0, b"", 0, 0, NO_XATTRS, None)
_WHITEOUT_DEVICE = Entry(b"", Kind.CHAR, 0, 0, 0, 0, 0, 0, b"", 0, 0, NO_XATTRS, None)


class Node:
    """One inode: attributes and, for a regular file, where its data went.  Slots, since there may be a million."""

    __slots__ = (
        "block", "chunks", "device", "gid", "kind", "layout", "link", "mode", "mtime", "mtime_ns", "nid", "nlink",
        "number", "size", "tail", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, entry: Entry) -> None:
        _, kind, mode, uid, gid, mtime, mtime_ns, size, link, major, minor, xattrs, _ = entry
        self.kind, self.mode, self.uid, self.gid = kind, mode, uid, gid
        self.mtime, self.mtime_ns = mtime, mtime_ns
        self.size = size
        self.link = link
        self.device = (major, minor) if major or minor else NO_DEVICE
        self.xattrs = xattrs
        self.nlink = 1
        #: First block of the data in the image, and what follows its last full block.
        self.block = 0
        self.tail = b""
        #: For a sparse file: (log2 of the blocks in a chunk, one 4-byte block address for each chunk).
        self.chunks: tuple[int, bytes] | None = None
        #: Where the inode is (-1: not placed yet), its running number, and how its data is laid out.
        self.nid = -1
        self.number = self.layout = 0


class Directory(Node):
    """A directory of the layer; `whiteouts` are names hidden in lower layers."""

    __slots__ = ("children", "implicit", "opaque", "whiteouts")

    def __init__(self, entry: Entry, *, implicit: bool) -> None:
        super().__init__(entry)
        self.children: dict[bytes, Node] = {}
        self.whiteouts: set[bytes] | None = None
        self.opaque = False
        #: No entry of its own: attributes are a guess until the lower layers are known.
        self.implicit = implicit
        self.nlink = 2

    def describe(self, entry: Entry) -> None:
        """Take over the attributes of *entry*."""
        self.mode, self.uid, self.gid = entry.mode, entry.uid, entry.gid
        self.mtime, self.mtime_ns = entry.mtime, entry.mtime_ns
        self.xattrs = entry.xattrs
        self.implicit = False


#: Last components that are not simply a name.
_NOT_PLAIN = (b"", b".", b"..")
#: With the value "y" it tells overlayfs to show nothing from below in a directory.
OPAQUE_XATTR = b"trusted.overlay.opaque"
#: overlayfs would take such attributes of an archive for its own instructions.
_OVERLAY_XATTR = b"trusted.overlay."


class Tree:
    """The layer's files so far.  Methods raise `ValueError` with a cause; the caller knows which entry it was."""

    def __init__(self, limits: Limits) -> None:
        self.root = Directory(_IMPLICIT, implicit=True)
        #: Nodes made, whiteouts and implied directories included.
        self.entries = 0
        self._metadata = self._steps = 0
        self._limits = limits
        self._cache: dict[bytes, Directory] = {}
        self._with_whiteouts: list[Directory] = []
        self._opaque: list[Directory] = []
        #: Whether anything was made that the lower layers must settle (so that a walk can be spared).
        self._needy = False

    def add(self, entry: Entry) -> Node | None:
        """Apply *entry*.  Returns the new node when it is a regular file, whose data the caller places."""
        self._count()
        path = entry.name
        self._metadata += len(path) + len(entry.link)
        if self._metadata > self._limits.metadata_bytes:
            raise ValueError(f"names and attributes of its files have more than {self._limits.metadata_bytes} bytes")
        if _AUFS in path and _is_bookkeeping(path):
            return None
        parent, name = self._place(path)
        if entry.xattrs:
            entry = entry._replace(xattrs=_without_overlay(entry.xattrs))
            self._metadata += sum(len(name) + len(value) for name, value in entry.xattrs.items())
        kind = entry.kind
        if not name:
            self._set_root(entry)
        elif name.startswith(_WHITEOUT):
            self._whiteout(parent, name)
        elif kind is Kind.DIRECTORY:
            self._directory(parent, name, entry)
        elif kind is Kind.HARDLINK:
            self._link(parent, name, entry)
        else:
            node = Node(entry)
            self._put(parent, name, node)
            if kind is Kind.REGULAR:
                return node
            _check_device(node)
        return None

    def finish(self) -> Needs:
        """Turn whiteouts into what overlayfs understands; tell what the lower layers must settle.  Call once."""
        for directory in self._with_whiteouts:
            for name in directory.whiteouts or ():
                known = directory.children.get(name)
                if known is None:
                    directory.children[name] = Node(_WHITEOUT_DEVICE)
                elif isinstance(known, Directory):
                    self._make_opaque(known)
        if self.root.opaque:
            for child in self.root.children.values():
                if isinstance(child, Directory):
                    self._make_opaque(child)
        for directory in self._opaque:
            if directory is not self.root:
                directory.xattrs = {**directory.xattrs, OPAQUE_XATTR: b"y"}
        if not self._needy:
            return Needs(opaque_root=self.root.opaque)
        return self._needs()

    def _needs(self) -> Needs:
        """Take out the links into lower layers, and find directories that were implied and may exist below."""
        links: list[tuple[bytes, bytes]] = []
        parents: list[bytes] = []
        stack: list[tuple[bytes, Directory, bool]] = [(b"", self.root, self.root.opaque)]
        while stack:
            path, here, hidden = stack.pop()
            prefix = path + b"/" if path else b""
            for name, child in sorted(here.children.items()):
                if isinstance(child, Directory):
                    covered = hidden or child.opaque
                    if child.implicit and not covered:
                        parents.append(prefix + name)
                    stack.append((prefix + name, child, covered))
                elif child.kind is Kind.HARDLINK:
                    links.append((prefix + name, child.link))
                    del here.children[name]
        return Needs(tuple(sorted(links)), tuple(sorted(parents)), self.root.opaque)

    def _make_opaque(self, directory: Directory) -> None:
        if not directory.opaque:
            directory.opaque = True
            self._opaque.append(directory)

    def _count(self) -> None:
        self.entries += 1
        if self.entries > self._limits.entries:
            raise ValueError(f"the layer has more than {self._limits.entries} entries")

    # -- where a name leads ------------------------------------------------------------------------------------

    def _place(self, path: bytes) -> tuple[Directory, bytes]:
        """The directory that holds *path* and its last component (empty for the root itself)."""
        if path[-1:] == b"/":
            path = path.rstrip(b"/")
        head, _, name = path.rpartition(b"/")
        parent = self._cache.get(head)
        if parent is not None and name not in _NOT_PLAIN and len(name) <= NAME_MAX:
            return parent, name
        parts = clean(path)
        if not parts:
            return self.root, b""
        parent = self._follow(parts[:-1], make=True)
        assert parent is not None
        if len(self._cache) >= _CACHE_SIZE:
            self._cache.clear()
        if parts[-1] == name:
            self._cache[head] = parent
        return parent, parts[-1]

    def _follow(self, parts: list[bytes], *, make: bool) -> Directory | None:
        """The directory *parts* lead to, through symbolic links of this layer and never above its root.

        What is missing is made, or None is the answer.
        """
        todo = parts[::-1]
        trail = [self.root]
        links = 0
        while todo:
            self._steps += 1
            if self._steps > self._limits.path_steps:
                raise ValueError("finding the places of its files takes too long: their names are a maze")
            part = todo.pop()
            if part == b"..":
                trail = trail[:-1] or trail
                continue
            child = trail[-1].children.get(part)
            if child is None and make:
                child = self._imply(trail[-1], part)
            if isinstance(child, Directory):
                trail.append(child)
            elif child is None or child.kind is not Kind.SYMLINK:
                if make:
                    raise ValueError(f"it lies in {part[:80]!r}, which is no directory")
                return None
            else:
                links += 1
                if links > MAX_LINKS:
                    raise ValueError("its name leads through too many symbolic links")
                if child.link.startswith(b"/"):
                    trail = [self.root]
                todo += [step for step in reversed(child.link.split(b"/")) if step not in (b"", b".")]
        return trail[-1]

    def _imply(self, parent: Directory, name: bytes) -> Directory:
        """Make a directory that the archive does not list but has files in."""
        if len(name) > NAME_MAX:
            raise ValueError(f"a part of its name has {len(name)} bytes; Linux takes {NAME_MAX}")
        if name.startswith(_WHITEOUT):
            raise ValueError(f"it lies in the whiteout {name[:80]!r}")
        self._count()
        self._needy = True
        child = Directory(_IMPLICIT, implicit=True)
        parent.children[name] = child
        parent.nlink += 1
        return child

    # -- what an entry does ------------------------------------------------------------------------------------

    def _set_root(self, entry: Entry) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise ValueError("it would replace the root directory by something else")
        self.root.describe(entry)

    def _whiteout(self, parent: Directory, name: bytes) -> None:
        """Note a whiteout: of one name, or of all that lower layers have in *parent*."""
        if name == OPAQUE_WHITEOUT:
            self._make_opaque(parent)
            return
        hidden = name[len(_WHITEOUT) :]
        if hidden in _NOT_PLAIN:
            raise ValueError(f"{name!r} is a whiteout of nothing")
        if parent.whiteouts is None:
            parent.whiteouts = set()
            self._with_whiteouts.append(parent)
        parent.whiteouts.add(hidden)

    def _directory(self, parent: Directory, name: bytes, entry: Entry) -> None:
        known = parent.children.get(name)
        if isinstance(known, Directory):
            known.describe(entry)
            return
        node = Directory(entry, implicit=False)
        # When the file it replaces came, a lower directory of that name was gone; this one does not bring it back.
        if known is not None:
            self._make_opaque(node)
        self._put(parent, name, node)
        parent.nlink += 1

    def _link(self, parent: Directory, name: bytes, entry: Entry) -> None:
        """Give a file another name.  One that is not in this layer gets a stand-in until `finish`."""
        target = clean(entry.link)
        holder = self._follow(target[:-1], make=False)
        found = holder.children.get(target[-1]) if holder and target else None
        if isinstance(found, Directory) or not target:
            raise ValueError(f"it is a hard link to the directory {entry.link[:80]!r}")
        if found is None:
            found = Node(entry._replace(link=b"/".join(target)))
            found.nlink = 0
            self._needy = True
        if parent.children.get(name) is not found:
            self._put(parent, name, found)
            found.nlink += 1

    def _put(self, parent: Directory, name: bytes, node: Node) -> None:
        """Enter *node*, in place of whatever has that name."""
        known = parent.children.get(name)
        parent.children[name] = node
        if known is None:
            return
        self._cache.clear()
        gone = [known]
        if isinstance(known, Directory):
            parent.nlink -= 1
        while gone:
            node = gone.pop()
            node.nlink -= 1
            if isinstance(node, Directory):
                gone += node.children.values()


def clean(path: bytes) -> list[bytes]:
    """The components of *path* under the root, ``.`` and ``..`` worked off.  Raises `ValueError` if it leaves it."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not parts:
                raise ValueError(f"{path[:80]!r} leads out of the layer")
            parts.pop()
            continue
        if len(part) > NAME_MAX and len(part.removeprefix(_WHITEOUT)) > NAME_MAX:
            raise ValueError(f"a part of its name has {len(part)} bytes; Linux takes {NAME_MAX}")
        parts.append(part)
    return parts


def _is_bookkeeping(path: bytes) -> bool:
    """Whether *path* is in or of what aufs kept beside the files."""
    *above, last = path.rstrip(b"/").split(b"/")
    return any(part.startswith(_AUFS) for part in above) or (last.startswith(_AUFS) and last != OPAQUE_WHITEOUT)


def _without_overlay(xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in xattrs.items() if not name.startswith(_OVERLAY_XATTR)}


def _check_device(node: Node) -> None:
    major, minor = node.device
    if major > _MAX_MAJOR or minor > _MAX_MINOR:
        raise ValueError(f"its device number {major}:{minor} is beyond what Linux has")
