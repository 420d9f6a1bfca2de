"""What the container has changed against its image (`docker diff`), read from the writable layer; done by a worker.

The writable layer of an overlay has what was added or changed, character devices 0:0 where something was deleted, and
the attribute trusted.overlay.opaque on folders that replace one of the image (the kernel's filesystems/overlayfs.rst).
Whether something was there before is asked of the image's layers, stacked without the writable one.

    A  added      everything that the image has not
    C  changed    everything that it has and that was opened for writing or whose attributes were changed; folders:
                  whose attributes, times included, are others, or in which something was added or deleted
    D  deleted    the topmost of what is gone

Renamed folders are copies here: the overlay is mounted without redirect_dir.
"""

import errno
import os
import stat

from tether.kernel import files
from tether.kernel.mounts import Mounted, read_mounts
from tether.kernel.syscalls import MNT_DETACH, MS_RDONLY, mount, umount
from tether.link.late_messages import ADDED, CHANGED, DELETED
from tether.link.messages import Done
from tether.requests.worker import Desk
from tether.rootfs import baseline
from tether.rootfs.root import MERGED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"
_OVERLAYS_OWN = "trusted.overlay."
_WRITE_SIZE = 1 << 16


def diff(desk: Desk) -> Done:
    """Writes the changes to the worker's pipe.  Raises OSError."""
    options = overlay_options(read_mounts())
    if "upperdir" not in options:
        return Done()
    lower = _image(options["lowerdir"])
    upper = os.open(options["upperdir"], _FOLDER)
    buffer = bytearray()

    def tell(kind: str, path: bytes) -> None:
        buffer.extend(kind.encode() + path + b"\0")
        if len(buffer) >= _WRITE_SIZE:
            _write(desk.data, buffer)

    Comparison(baseline.read(files.read_if_there(baseline.NOTE) or b""), tell).run(upper, lower)
    _write(desk.data, buffer)
    return Done()


def overlay_options(mounts: tuple[Mounted, ...]) -> dict[str, str]:
    """Options of the container's root, or nothing if it is no overlay."""
    for one in mounts:
        if one.path == MERGED and one.kind == "overlay":
            return {key: value for key, _, value in (word.partition("=") for word in one.options.split(","))}
    return {}


class _Level:
    """A folder under comparison.  `below` is None where the image has no such folder."""

    def __init__(self, path: bytes, above: int, below: int | None, told: bool) -> None:
        self.path, self.above, self.below, self.told = path, above, below, told
        self.names = iter(sorted(os.fsencode(name) for name in os.listdir(above)))


class Comparison:
    """`tell` is called with kind and path of each change; `ours` is what tether has made."""

    def __init__(self, ours: baseline.State, tell: "Callable[[str, bytes], None]") -> None:
        self._ours, self._tell = ours, tell
        self._stack: list[_Level] = []

    def run(self, upper: int, lower: int) -> None:
        """Compares two folders, both descriptors, which it closes."""
        self._stack.append(_Level(b"", upper, lower, told=True))  # the root itself is not told, as with Docker
        while self._stack:
            level = self._stack[-1]
            name = next(level.names, None)
            if name is None:
                self._leave(self._stack.pop())
            else:
                self._one(level, name)

    def _leave(self, level: _Level) -> None:
        os.close(level.above)
        if level.below is not None:
            os.close(level.below)

    def _one(self, level: _Level, name: bytes) -> None:
        try:
            info = os.stat(name, dir_fd=level.above, follow_symlinks=False)
        except FileNotFoundError:
            return  # deleted meanwhile
        before = _stat(level.below, name)
        path = level.path + b"/" + name
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            if before is not None:
                self._report(level, DELETED, path)
        elif stat.S_ISDIR(info.st_mode):
            self._folder(level, name, info, before)
        elif self._ours.get(path) != baseline.describe(info):
            self._report(level, ADDED if before is None else CHANGED, path)

    def _folder(self, level: _Level, name: bytes, info: os.stat_result, before: os.stat_result | None) -> None:
        path = level.path + b"/" + name
        above = os.open(name, _FOLDER, dir_fd=level.above)
        below = None
        if before is not None and stat.S_ISDIR(before.st_mode) and level.below is not None:
            below = os.open(name, _FOLDER, dir_fd=level.below)
        told = self._ours.get(path) != baseline.describe(info)
        if below is not None and told:
            told = _looks(info, above) != _looks(os.fstat(below), below)
        if told:
            self._report(level, ADDED if before is None and path not in self._ours else CHANGED, path)
        self._stack.append(_Level(path, above, below, told))
        if below is not None and _is_opaque(above):
            kept = set(os.listdir(above))
            for gone in sorted(set(os.listdir(below)) - kept):
                self._report(self._stack[-1], DELETED, path + b"/" + os.fsencode(gone))

    def _report(self, level: _Level, kind: str, path: bytes) -> None:
        """A folder in which something was added or deleted has changed, also if somebody has set its time back."""
        if kind != CHANGED and not level.told:
            level.told = True
            self._tell(CHANGED, level.path)
        self._tell(kind, path)


def _looks(info: os.stat_result, opened: int) -> tuple[object, ...]:
    """What makes a folder another one: not its size, which is the file system's business."""
    xattrs = {name: os.getxattr(opened, name) for name in os.listxattr(opened) if not name.startswith(_OVERLAYS_OWN)}
    return info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, xattrs


def _is_opaque(opened: int) -> bool:
    try:
        return os.getxattr(opened, _OPAQUE) == b"y"
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return False


def _stat(folder: int | None, name: bytes) -> os.stat_result | None:
    if folder is None:
        return None
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _image(lower: str) -> int:
    """A descriptor of the image's layers, stacked; the mount ends with the descriptor."""
    if ":" not in lower:
        return os.open(lower, _FOLDER)
    place = f"/d{os.getpid()}"
    os.mkdir(place)
    try:
        mount("overlay", place, "overlay", MS_RDONLY, f"lowerdir={lower}")
        opened = os.open(place, _FOLDER)
        umount(place, MNT_DETACH)
    finally:
        os.rmdir(place)
    return opened


def _write(sink: int, buffer: bytearray) -> None:
    view = memoryview(bytes(buffer))
    buffer.clear()
    while view:
        view = view[os.write(sink, view):]
