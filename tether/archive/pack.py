"""A file or a tree of files as a tar archive, written to a pipe; folders are entered by descriptor and links never.

What the files' owner does meanwhile can change what is archived, but not lead elsewhere.  Names are in order, so that
two archives of one tree are the same.
"""

import errno
import os
import stat

from tether.archive.entry import (
    BLOCK_DEVICE,
    CHAR,
    FIFO,
    FILE,
    FOLDER,
    HARD_LINK,
    SYMLINK,
    Entry,
    Segment,
    padding,
)
from tether.archive.tarwrite import END, header_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = {stat.S_IFLNK: SYMLINK, stat.S_IFCHR: CHAR, stat.S_IFBLK: BLOCK_DEVICE, stat.S_IFIFO: FIFO}
_BUFFER = 256 << 10  # headers and small files are gathered to writes of this size
_SMALL = 64 << 10  # files up to this size are read, larger ones go from file to pipe inside the kernel
_PIECE = 1 << 20
_STORED_UNIT = 512  # of st_blocks
_NOT_OURS = b"trusted.overlay."  # what overlayfs notes for itself
_NOT_THERE = (errno.ENODATA, errno.ENOENT, errno.EOPNOTSUPP, errno.EPERM)


class Packer:
    """Writes one archive to the pipe `sink` (blocking)."""

    def __init__(self, sink: int, hidden: frozenset[int] = frozenset()) -> None:
        self._sink = sink
        self.hidden = hidden
        """Devices (st_dev) whose folders are archived as empty: /proc is no data of anybody's."""
        self._buffer = bytearray()
        self._names: dict[tuple[int, int], bytes] = {}  # inodes with several names -> the first one

    def add(self, folder: int, leaf: str, name: bytes) -> None:
        """What is `leaf` in `folder`, and all below it, as `name`.  Raises OSError with the name that it is about."""
        stack: list[tuple[int, bytes, Iterator[str]]] = []
        try:
            self._one(folder, leaf, name, stack)
            while stack:
                current, prefix, names = stack[-1]
                below = next(names, None)
                if below is None:
                    os.close(stack.pop()[0])
                else:
                    self._one(current, below, prefix + os.fsencode(below), stack)
        finally:
            for opened, _, _ in stack:
                os.close(opened)

    def finish(self) -> None:
        """The end of the archive."""
        self._buffer += END
        self._flush()

    def _one(self, folder: int, leaf: str, name: bytes, stack: "list[tuple[int, bytes, Iterator[str]]]") -> None:
        try:
            info = os.stat(leaf, dir_fd=folder, follow_symlinks=False)
            top = not stack
            if stat.S_ISREG(info.st_mode):
                self._file(folder, leaf, name)
            elif stat.S_ISDIR(info.st_mode):
                self._folder(folder, leaf, name, stack)
            elif stat.S_IFMT(info.st_mode) in _KINDS:
                self._special(folder, leaf, name, info)
            elif top:
                raise OSError(errno.EOPNOTSUPP, "a socket cannot be archived", name)
        except FileNotFoundError as error:
            if not stack:
                raise OSError(error.errno, error.strerror, name) from error
            # else: deleted while we were on the way to it
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from error

    def _folder(self, parent: int, leaf: str, name: bytes, stack: "list[tuple[int, bytes, Iterator[str]]]") -> None:
        opened = os.open(leaf, _OPEN | os.O_DIRECTORY, dir_fd=parent)
        try:
            info = os.fstat(opened)
            self._buffer += header_of(_entry(info, name, FOLDER, _xattrs(opened)))
            below = [] if info.st_dev in self.hidden else sorted(os.listdir(opened))
        except BaseException:
            os.close(opened)
            raise
        stack.append((opened, name.rstrip(b"/") + b"/", iter(below)))

    def _file(self, parent: int, leaf: str, name: bytes) -> None:
        opened = os.open(leaf, _OPEN, dir_fd=parent)
        try:
            info = os.fstat(opened)
            if not stat.S_ISREG(info.st_mode) or self._known(info, name):
                return
            entry = _entry(info, name, FILE, _xattrs(opened))
            sparse = info.st_blocks * _STORED_UNIT < info.st_size
            entry = entry.but(size=info.st_size, segments=_segments(opened, info.st_size) if sparse else None)
            self._buffer += header_of(entry)
            for segment in (Segment(offset=0, length=entry.size),) if entry.segments is None else entry.segments:
                self._content(opened, segment)
        finally:
            os.close(opened)

    def _content(self, opened: int, segment: Segment) -> None:
        """A run of bytes; what has been cut off a file meanwhile is made up with zeros, as GNU tar does."""
        at, left = segment.offset, segment.length
        if left > _SMALL:
            self._flush()
        while left:
            if left > _SMALL:
                moved = os.sendfile(self._sink, opened, at, min(left, _PIECE))
            else:
                data = os.pread(opened, left, at)
                self._buffer += data
                moved = len(data)
            if not moved:
                self._zeros(left)
                break
            at, left = at + moved, left - moved
        self._buffer += bytes(padding(segment.length))
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def _zeros(self, count: int) -> None:
        while count:
            piece = min(count, _PIECE)
            self._buffer += bytes(piece)
            self._flush()
            count -= piece

    def _special(self, folder: int, leaf: str, name: bytes, info: os.stat_result) -> None:
        if self._known(info, name):
            return
        entry = _entry(info, name, _KINDS[stat.S_IFMT(info.st_mode)], _xattrs(f"/proc/self/fd/{folder}/{leaf}"))
        if entry.kind == SYMLINK:
            entry = entry.but(link=os.fsencode(os.readlink(leaf, dir_fd=folder)))
        elif entry.kind != FIFO:
            entry = entry.but(device=info.st_rdev)
        self._buffer += header_of(entry)

    def _known(self, info: os.stat_result, name: bytes) -> bool:
        """Another name of a file that is in the archive already becomes a hard link."""
        if info.st_nlink < 2:
            return False
        first = self._names.setdefault((info.st_dev, info.st_ino), name)
        if first == name:
            return False
        self._buffer += header_of(_entry(info, name, HARD_LINK, ()).but(link=first))
        return True

    def _flush(self) -> None:
        view = memoryview(bytes(self._buffer))
        self._buffer.clear()
        while view:
            view = view[os.write(self._sink, view):]


def _entry(info: os.stat_result, name: bytes, kind: bytes, xattrs: tuple[tuple[bytes, bytes], ...]) -> Entry:
    return Entry(name=name, kind=kind, mode=stat.S_IMODE(info.st_mode), uid=info.st_uid, gid=info.st_gid,
                 mtime_ns=info.st_mtime_ns, xattrs=xattrs)


def _segments(opened: int, size: int) -> tuple[Segment, ...]:
    """Where a sparse file has data (lseek(2), SEEK_DATA); a hole at its end is marked by an empty segment."""
    segments = []
    at = 0
    while at < size:
        try:
            begin = os.lseek(opened, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole from here on
                raise
            break
        at = min(os.lseek(opened, begin, os.SEEK_HOLE), size)
        segments.append(Segment(offset=begin, length=at - begin))
    if not segments or segments[-1].offset + segments[-1].length < size:
        segments.append(Segment(offset=size, length=0))
    return tuple(segments)


def _xattrs(what: "int | str") -> tuple[tuple[bytes, bytes], ...]:
    """Extended attributes, of a link itself where it is one.  Those that vanish meanwhile are left out."""
    found = []
    try:
        follow = isinstance(what, int)
        for key in sorted(os.listxattr(what, follow_symlinks=follow)):
            name = os.fsencode(key)
            if not name.startswith(_NOT_OURS):
                found.append((name, os.getxattr(what, key, follow_symlinks=follow)))
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
    return tuple(found)
