"""Writes an EROFS image front to back while the files arrive.

    block 0      superblock, the root's inode, other inodes as far as there is room
    1 ...        the full blocks of file data, in order of arrival
    then         inodes, each with the end of its file or directory behind it (inline tails)
    then         full blocks of directories, and what fits nowhere else; attributes shared between inodes

File data goes straight to the image; only what follows a file's last full block stays in memory, as it is to share
a block with the inode.  When those tails add up to `TAIL_BUDGET`, their inodes are written out between the data, so
memory does not grow with the layer.  `meta_blkaddr` is 0: inodes may then be anywhere, and the root, whose number
has 16 bits only, sits in the first block, which is written last.

The same files in the same order give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from imagebuild.layer import erofs
from imagebuild.layer.entry import NO_XATTRS, Segment
from imagebuild.layer.erofs import BLOCK, EXTENDED_SIZE
from imagebuild.layer.erofs_inodes import InodeTable, Style
from imagebuild.layer.limits import MIB, Limits
from imagebuild.layer.tree import Directory, Node
from imagebuild.newfile import NewFile

#: Bytes that wait in memory for their inodes to be written: file tails, chunk maps, extended attributes.
TAIL_BUDGET = 16 * MIB
#: One writev takes 1024 buffers (IOV_MAX); one file adds up to three at once.
_MAX_BUFFERS = 1000
#: A sparse file's map has at most this many chunks for each segment of data: enough to waste little, too few to make
#: a small archive cost much memory.
_CHUNKS_PER_SEGMENT = 64
_MAX_CHUNK_BITS = 31
_ZEROS = bytes(BLOCK)

Buffer = bytes | memoryview


class ErofsWriter:
    """One image, written into *file* from its beginning.

    Methods raise `ValueError` for what EROFS or the limits do not allow and `StoreError` for what the disk does not.
    """

    def __init__(self, file: NewFile, limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self._vector: list[Buffer] = []
        self._offset = BLOCK  # where the vector goes
        self._end = BLOCK  # where the next file's data begins: always a whole number of blocks
        self._waiting: list[Node] = []
        self._waiting_bytes = 0
        self._inodes = 0
        self._early: dict[int, tuple[Node, int]] = {}
        self._chunked = False
        self._ends_full = False

    # -- file data ---------------------------------------------------------------------------------------------

    def store(self, node: Node, pieces: Iterable[memoryview]) -> None:
        """Write the data of a regular file of ``node.size`` bytes."""
        left = node.size & -BLOCK
        if left:
            node.block = self._end // BLOCK
            self._reserve(left)
        vector = self._vector
        tail = b""
        for piece in pieces:
            if left:
                vector.append(piece[:left])
                if len(piece) > left:
                    tail = bytes(piece[left:])
                left -= min(left, len(piece))
            else:
                tail += bytes(piece)
        if tail:
            self._keep_tail(node, tail)
        if len(vector) >= _MAX_BUFFERS:
            self.flush()

    def _keep_tail(self, node: Node, tail: bytes) -> None:
        """Hold *tail* until the inode is written, unless both together are too much for a block."""
        taken = EXTENDED_SIZE
        if node.xattrs:
            taken += len(erofs.xattr_body(node.xattrs, {}))
        if taken + len(tail) <= BLOCK:
            node.tail = tail
            self._wait(node, taken - EXTENDED_SIZE + len(tail))
            return
        if node.size < BLOCK:
            node.block = self._end // BLOCK
        self._reserve(BLOCK)
        self._vector += (tail, _ZEROS[: BLOCK - len(tail)])

    def store_sparse(self, node: Node, segments: tuple[Segment, ...], pieces: Iterable[memoryview]) -> None:
        """Write the segments of a sparse file, whose data *pieces* hold one after the other."""
        blocks = (node.size + BLOCK - 1) // BLOCK
        bits = max(0, (blocks // (_CHUNKS_PER_SEGMENT * (len(segments) + 1))).bit_length())
        if bits > _MAX_CHUNK_BITS:
            raise ValueError(f"it is a sparse file of {node.size} bytes, more than an image can describe")
        chunk = BLOCK << bits
        table = bytearray(b"\xff" * (4 * ((node.size + chunk - 1) // chunk)))
        rest = memoryview(b"")
        pieces = iter(pieces)
        self.flush()
        last, start = -1, 0
        for offset, length in segments:
            first, final = offset // chunk, (offset + length - 1) // chunk
            if first > last:
                last, start = first - 1, self._end - first * chunk
            # Chunks one after the other in the file are so in the image, so one segment is one run of bytes.
            while last < final:
                last += 1
                table[4 * last : 4 * last + 4] = (self._end // BLOCK).to_bytes(4, "little")
                self._reserve(min(chunk, (node.size - last * chunk + BLOCK - 1) & -BLOCK))
            self._offset = start + offset
            while length:
                if not rest:
                    rest = next(pieces)
                self._vector.append(rest[:length])
                taken = min(length, len(rest))
                length -= taken  # noqa: PLW2901
                rest = rest[taken:]
            self.flush()
        self._offset = self._end
        node.chunks = (bits, bytes(table))
        self._chunked = True
        self._wait(node, len(table))

    def _reserve(self, length: int) -> None:
        """Move the end of the data by *length* bytes."""
        self._end += length
        if self._end > self._limits.image_bytes:
            raise ValueError(f"the image would be larger than {self._limits.image_bytes} bytes")

    def flush(self) -> None:
        """Write what was gathered.  Call before the buffers behind the views given to `store` are needed again."""
        vector = self._vector
        while vector:
            part = vector[:_MAX_BUFFERS]
            self._write(part)
            del vector[:_MAX_BUFFERS]

    def _write(self, buffers: list[Buffer]) -> None:
        """Write all of *buffers* at the current offset, however often the kernel stops halfway."""
        wanted = sum(map(len, buffers))
        while wanted:
            written = self._file.pwritev(buffers, self._offset)
            self._offset += written
            wanted -= written
            if wanted:
                buffers = _rest(buffers, written)

    # -- inodes ------------------------------------------------------------------------------------------------

    def _wait(self, node: Node, size: int) -> None:
        """Keep *node* for later, or write all that wait when they have become too many."""
        self._waiting.append(node)
        self._waiting_bytes += size
        if self._waiting_bytes > TAIL_BUDGET:
            self._write_early()

    def _write_early(self) -> None:
        """Write the inodes of waiting files now.  Extended, as their link count may still grow."""
        table = InodeTable(self._end // BLOCK, self._inodes, Style(time=None, shared={}))
        files = [node for node in self._waiting if node.nlink]
        for node in files:
            table.place(node)
        self._append(table.blocks())
        self._end = table.next_block * BLOCK
        self._ends_full = table.ends_full
        self._inodes = table.next_number
        for node in files:
            node.tail, node.chunks, node.xattrs = b"", None, NO_XATTRS
            self._early[node.nid] = (node, node.nlink)
        self._waiting.clear()
        self._waiting_bytes = 0

    def _append(self, buffers: Iterable[bytes]) -> None:
        for buffer in buffers:
            self._vector.append(buffer)
            if len(self._vector) >= _MAX_BUFFERS:
                self.flush()
        self.flush()

    def finish(self, root: Directory, uuid: bytes, label: bytes) -> int:
        """Write all that is left of the image and make it whole blocks long.  Returns its size in bytes."""
        self.flush()
        self._correct_link_counts()
        nodes = list(_unplaced(root))
        time = _commonest_time(node for node, _ in nodes)
        shared = _shared_xattrs(root, nodes)
        table = InodeTable(self._end // BLOCK, self._inodes, Style(time, shared))
        table.place_root(root)
        for node, parent in nodes:
            if node.nid < 0:
                table.place(node, parent)
        table.place_blocks()
        grew = table.next_block * BLOCK > self._end
        self._reserve(table.next_block * BLOCK - self._end)
        self._append(table.blocks())
        if table.ends_full or (self._ends_full and not grew):
            # fsck.erofs looks for attributes behind every inode, also behind one that has none and ends the image.
            self._reserve(BLOCK)
        xattr_block = self._append_shared(b"".join(shared))
        first = bytes(erofs.SUPERBLOCK_OFFSET) + erofs.superblock(
            root_nid=root.nid, inodes=table.next_number, blocks=self._end // BLOCK, time=time, uuid=uuid,
            label=label, xattr_block=xattr_block, chunked=self._chunked,
        )  # fmt: skip
        self._offset = 0
        self._write([erofs.seal_first_block(first + table.first_block())])
        self._file.truncate(self._end)
        return self._end

    def _append_shared(self, entries: bytes) -> int:
        """Write the shared attributes at the end of the image.  Returns their block, 0 if there are none."""
        if not entries:
            return 0
        block = self._end // BLOCK
        self._reserve(len(entries) + BLOCK - 1 & -BLOCK)
        self._offset = block * BLOCK
        self._append([entries])
        return block

    def _correct_link_counts(self) -> None:
        """Files whose inodes went out early may have got or lost names since."""
        for nid, (node, written) in self._early.items():
            if node.nlink not in (written, 0):
                at = nid * erofs.SLOT + erofs.EXTENDED_NLINK_OFFSET
                self._file.pwritev([node.nlink.to_bytes(4, "little")], at)


def _rest(buffers: list[Buffer], written: int) -> list[Buffer]:
    """What is left of *buffers* without their first *written* bytes."""
    for at, buffer in enumerate(buffers):
        if written < len(buffer):
            return [memoryview(buffer)[written:], *buffers[at + 1 :]]
        written -= len(buffer)
    return []


def _unplaced(root: Directory) -> Iterator[tuple[Node, Directory]]:
    """Every node that has no place yet with its parent, directory by directory; one with several names comes often."""
    stack = [root]
    while stack:
        here = stack.pop()
        below: list[Directory] = []
        for _, node in sorted(here.children.items()):
            if node.nid < 0:
                yield node, here
            if isinstance(node, Directory):
                below.append(node)
        stack += reversed(below)


def _shared_xattrs(root: Directory, nodes: Iterable[tuple[Node, Directory]]) -> dict[bytes, int]:
    """Attributes that several inodes have, as bytes, and the number each gets: its offset in units of 4 bytes.

    The root's are always among them, as there is little room beside it.
    """
    counts = Counter(erofs.xattr_entry(*item) for node, _ in nodes for item in node.xattrs.items())
    for item in sorted(root.xattrs.items()):
        counts[erofs.xattr_entry(*item)] += 2
    shared: dict[bytes, int] = {}
    at = 0
    for entry, count in counts.items():
        if count > 1 and entry:
            shared[entry] = at // 4
            at += len(entry)
    return shared


def _commonest_time(nodes: Iterable[Node]) -> tuple[int, int]:
    """The modification time most inodes have: those that have it can be compact.  The earliest of several."""
    counts = Counter((node.mtime, node.mtime_ns) for node in nodes)
    return min(counts, key=lambda time: (-counts[time], time), default=(0, 0))
