"""Places EROFS inodes in blocks, then turns them into bytes.  Two steps: a directory names inodes placed after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from imagebuild.layer import erofs
from imagebuild.layer.entry import Kind
from imagebuild.layer.erofs import BLOCK, COMPACT_SIZE, EXTENDED_SIZE, SLOT
from imagebuild.layer.tree import Directory, Node

#: Blocks with room left that the next inode may go to.  More would pack no better and take longer to search.
_OPEN_BLOCKS = 8
_MAX_UINT16, _MAX_UINT32 = (1 << 16) - 1, (1 << 32) - 1
_ZEROS = bytes(BLOCK)
_ROOT_AT = erofs.SUPERBLOCK_OFFSET + erofs.SUPERBLOCK_SIZE
_HAS_DATA = (Kind.DIRECTORY, Kind.SYMLINK)


@dataclass(slots=True, eq=False)
class _Run:
    """A block of inodes, or several for one that is larger than a block."""

    index: int
    size: int
    room: int
    nodes: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Style:
    """What inodes of one table have in common."""

    #: Modification time (s, ns) that compact inodes stand for; None if all are to be extended.
    time: tuple[int, int] | None
    #: Extended attributes kept once for all, by their bytes, and their numbers.
    shared: dict[bytes, int]


class InodeTable:
    """Inodes in a run of blocks from *first_block* on."""

    def __init__(self, first_block: int, first_number: int, style: Style) -> None:
        self.next_block = first_block
        self.next_number = first_number
        self._shared = style.shared
        self._seconds = style.time[0] if style.time else None
        self._nanoseconds = style.time[1] if style.time else None
        self._runs: list[_Run] = []
        self._open: list[_Run] = []
        self._first: _Run | None = None
        #: Directories (with their parents) and long symbolic links, whose data gets blocks of its own.
        self._parents: dict[Directory, Directory] = {}
        self._blocks_for: list[Node] = []

    # -- step one: places --------------------------------------------------------------------------------------

    def place_root(self, root: Directory) -> None:
        """Put the root into the first block of the image, and use what is left there for others."""
        self._first = _Run(0, BLOCK, BLOCK - _ROOT_AT)
        self._open.append(self._first)
        self.place(root, root, self._first.room)
        if root.nid >= BLOCK // SLOT:
            raise ValueError("its root directory has more extended attributes than EROFS holds")

    def place(self, node: Node, parent: Directory | None = None, room: int = BLOCK) -> None:
        """Give *node* its number and its place; a directory needs its *parent*.

        *room* is the largest piece that inode and inline data together may take.
        """
        node.number = self.next_number
        self.next_number += 1
        size = COMPACT_SIZE if self._is_compact(node) else EXTENDED_SIZE
        if node.xattrs:
            size += len(erofs.xattr_body(node.xattrs, self._shared))
        node.layout = erofs.LAYOUT_PLAIN
        if node.tail:
            node.layout = erofs.LAYOUT_INLINE
            size += len(node.tail)
        elif node.chunks:
            node.layout = erofs.LAYOUT_CHUNKS
            size += len(node.chunks[1])
        elif node.kind in _HAS_DATA:
            size += self._place_data(node, parent, room - size)
        size = (size + SLOT - 1) // SLOT * SLOT
        run = self._fullest_fit(size)
        node.nid = (run.index * BLOCK + run.size - run.room) // SLOT
        run.room -= size
        run.nodes.append(node)

    def _place_data(self, node: Node, parent: Directory | None, room: int) -> int:
        """Decide where the data of a directory or link goes.  Returns the bytes of it that follow the inode."""
        if isinstance(node, Directory):
            assert parent is not None
            self._parents[node] = parent
            node.size = _directory_size(node)
        else:
            node.size = len(node.link)
        tail = node.size % BLOCK
        if tail and tail <= room:
            node.layout = erofs.LAYOUT_INLINE
        else:
            tail = 0
        if node.size > tail:
            self._blocks_for.append(node)
        return tail

    def _is_compact(self, node: Node) -> bool:
        return (
            node.mtime == self._seconds
            and node.mtime_ns == self._nanoseconds
            and node.uid <= _MAX_UINT16
            and node.gid <= _MAX_UINT16
            and node.nlink <= _MAX_UINT16
            and node.size <= _MAX_UINT32
        )

    def _fullest_fit(self, size: int) -> _Run:
        """The fullest open block with *size* bytes of room, or a new one."""
        best: _Run | None = None
        least = BLOCK + 1
        for run in self._open:
            if size <= run.room < least:
                best, least = run, run.room
        if best is not None:
            return best
        blocks = (size + BLOCK - 1) // BLOCK
        best = _Run(self.next_block, blocks * BLOCK, blocks * BLOCK)
        self.next_block += blocks
        self._runs.append(best)
        if len(self._open) >= _OPEN_BLOCKS:
            self._open.remove(min(self._open, key=lambda run: run.room))
        self._open.append(best)
        return best

    def place_blocks(self) -> None:
        """Give blocks after the inodes to the data of directories and links; when all inodes are placed."""
        for node in self._blocks_for:
            node.block = self.next_block
            inline = node.layout == erofs.LAYOUT_INLINE
            self.next_block += node.size // BLOCK if inline else (node.size + BLOCK - 1) // BLOCK

    @property
    def ends_full(self) -> bool:
        """Whether an inode ends where the table does."""
        last = self._runs[-1] if self._runs else self._first
        return last is not None and not last.room and not self._blocks_for

    # -- step two: bytes ---------------------------------------------------------------------------------------

    def blocks(self) -> Iterator[bytes]:
        """Everything from the table's first block on, in order: inodes, then what `place_blocks` placed."""
        for run in self._runs:
            yield from self._run_bytes(run)
        for node in self._blocks_for:
            data = self._data(node)
            whole = len(data) // BLOCK * BLOCK
            if node.layout != erofs.LAYOUT_INLINE:
                yield data + _ZEROS[: -len(data) % BLOCK]
            else:
                yield data[:whole]

    def first_block(self) -> bytes:
        """What follows the superblock in the image's first block."""
        assert self._first is not None
        return b"".join(self._run_bytes(self._first))

    def _run_bytes(self, run: _Run) -> Iterator[bytes]:
        for node in run.nodes:
            yield self._inode(node)
        if run.room:
            yield _ZEROS[: run.room]

    def _inode(self, node: Node) -> bytes:
        """One inode with all that follows it, padded to whole slots."""
        body = erofs.xattr_body(node.xattrs, self._shared) if node.xattrs else b""
        union, follows = node.block, b""
        if node.layout == erofs.LAYOUT_CHUNKS:
            assert node.chunks is not None
            union, follows = node.chunks
        elif node.kind is Kind.REGULAR:
            follows = node.tail
        elif node.layout == erofs.LAYOUT_INLINE:
            data = self._data(node)
            follows = data[len(data) // BLOCK * BLOCK :]
        elif node.kind in (Kind.CHAR, Kind.BLOCK):
            union = erofs.device_number(*node.device)
        head = erofs.inode(node, self._is_compact(node), node.layout, union, erofs.xattr_units(body))
        size = len(head) + len(body) + len(follows)
        return b"".join((head, body, follows, _ZEROS[: -size % SLOT]))

    def _data(self, node: Node) -> bytes:
        """The content of a directory or symbolic link."""
        if isinstance(node, Directory):
            return _directory_data(node, self._parents[node])
        return node.link


def _names(directory: Directory) -> list[bytes]:
    return sorted((b".", b"..", *directory.children))


def _directory_size(directory: Directory) -> int:
    """Bytes of the directory's data, which lets its last block end where its names do."""
    names = _names(directory)
    counts = erofs.directory_split(names)
    last = names[len(names) - counts[-1] :]
    return (len(counts) - 1) * BLOCK + erofs.DIRENT_SIZE * len(last) + sum(map(len, last))


def _directory_data(directory: Directory, parent: Directory) -> bytes:
    """The directory's blocks, each sorted and padded but for the last one's end."""
    known = {b".": directory, b"..": parent, **directory.children}
    names = _names(directory)
    blocks: list[bytes] = []
    at = 0
    for count in erofs.directory_split(names):
        part = [(name, known[name].nid, known[name].kind) for name in names[at : at + count]]
        if blocks:
            blocks[-1] = blocks[-1].ljust(BLOCK, b"\0")
        blocks.append(erofs.directory_block(part))
        at += count
    return b"".join(blocks)
