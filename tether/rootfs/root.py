"""The root filesystem: read-only layers, the mount points that every container has, and a writable top.

    /l/0 ... /l/N    the image's layers, lowest first
    /i               a layer of ours over them with nothing but mount points (Docker's "init layer"): the container's
                     /proc, /etc/hosts and so on exist whatever the image has, and show up in no diff against it
    /w               the writable disk, or a tmpfs: /w/upper, /w/work
    /r               all of them stacked: the container's root

A spec may also name one disk that is the whole root (`Root.whole`); then there is /r and nothing else.

The names are short because mount(2) takes one page of options and an image may have 127 layers and their patches.
"""

import errno
import os
import stat

from tether.faults import TetherError
from tether.kernel import files
from tether.kernel.modules import load_on_demand
from tether.kernel.syscalls import MS_BIND, MS_RDONLY, MS_REMOUNT, PAGE, mount
from tether.link.record import Record
from tether.rootfs.disks import describe, find_disk
from tether.rootfs.inside import by_handle, hint_for
from tether.spec import Layer, Root

LAYERS, INIT_LAYER, WRITABLE, MERGED = "/l", "/i", "/w", "/r"
MAX_LAYERS = 255  # partitions that Linux finds on one disk: 127 layers, Docker's limit, and their patches fit
FILESYSTEMS = ("erofs", "squashfs", "ext4")
_ON_DEMAND = ("squashfs",)  # a module of the same name, where it is one
_READ_ONLY_OPTIONS = {"ext4": "noload"}  # a journal cannot be replayed on a read-only disk
# Or a thread of the kernel reads, or makes up, all bitmaps of a disk that is empty (fs/ext4/super.c).
_NO_PREFETCH = "no_prefetch_block_bitmaps"
WRITABLE_FILESYSTEM = "ext4"

LOST_FOUND = "lost+found"

INIT_FOLDERS = ("proc", "sys", "dev")
INIT_FILES = ("etc/hosts", "etc/hostname", "etc/resolv.conf")
INIT_LINKS = (("etc/mtab", "/proc/mounts"),)


class RootPlan(Record):
    """Which layer goes where, and how they are stacked."""

    layers: tuple[tuple[Layer, str], ...]
    overlay_options: str  # empty without an overlay: the root is one disk


def plan_root(root: Root) -> RootPlan:
    """Checks the spec and lays everything out.  Raises TetherError."""
    if root.whole is not None:
        if root.layers or root.writable is not None:
            raise TetherError("spec.root.whole", "a disk that is the whole root has neither layers nor a writable top",
                              hint="leave out layers and writable, or make the disk the one layer")
        return RootPlan(layers=(), overlay_options="")
    if len(root.layers) > MAX_LAYERS:
        raise TetherError("spec.root.layers", f"{len(root.layers)} layers; at most {MAX_LAYERS} can be stacked")
    for layer in root.layers:
        if layer.filesystem not in FILESYSTEMS:
            raise TetherError("spec.root.layers", f"unknown filesystem {layer.filesystem!r}",
                              hint=f"known are {', '.join(FILESYSTEMS)}")
    placed = tuple((layer, f"{LAYERS}/{number}") for number, layer in enumerate(root.layers))
    return RootPlan(layers=placed, overlay_options=overlay_options([INIT_LAYER, *reversed([at for _, at in placed])]))


def overlay_options(lower: list[str]) -> str:
    """Options of the overlay over `lower`, topmost first.  Raises TetherError when they do not fit into a page."""
    options = f"lowerdir={':'.join(lower)},upperdir={WRITABLE}/upper,workdir={WRITABLE}/work"
    if len(options) >= PAGE:
        raise TetherError("overlay", f"{len(options)} bytes of options do not fit into a page")
    return options


def mount_layers(plan: RootPlan) -> None:
    """Mounts every layer of the image, read-only."""
    os.mkdir(LAYERS)
    for layer, at in plan.layers:
        os.mkdir(at)
        node = find_disk(layer.disk)
        if layer.verity is not None:
            from tether.rootfs.verity import open_verified  # late: few specs have root hashes

            node = open_verified(node, layer.verity, f"layer{at.rpartition('/')[2]}")
        if layer.filesystem in _ON_DEMAND:
            load_on_demand(layer.filesystem)
        options = _READ_ONLY_OPTIONS.get(layer.filesystem, "")
        try:
            mount_disk(node, at, layer.filesystem, MS_RDONLY, options)
        except TetherError as error:
            if layer.verity is None or error.number not in (errno.EIO, errno.EINVAL):
                raise
            raise TetherError(describe(layer.disk), "does not have its root hash", errno.EIO,
                              "somebody changed the layer, or its disk is damaged: imagebuild verify") from error


def mount_disk(node: str, at: str, kind: str, flags: int, options: str = "") -> None:
    """Mounts a disk; the error names the disk, not the place."""
    try:
        mount(node, at, kind, flags, options)
    except OSError as error:
        number = error.errno or 0
        raise TetherError(f"{kind} on {node}", os.strerror(number), number, hint_for(number, kind)) from error


def mount_writable(root: Root) -> str:
    """Mounts what takes the container's changes: its disk, or memory, or the disk that is all.  Gives the place."""
    if root.whole is not None:
        os.mkdir(MERGED)
        mount_disk(find_disk(root.whole), MERGED, WRITABLE_FILESYSTEM, 0)
        return MERGED
    os.mkdir(WRITABLE)
    if root.writable is None:
        mount("tmpfs", WRITABLE, "tmpfs", 0, "mode=0755")
    else:
        mount_disk(find_disk(root.writable), WRITABLE, WRITABLE_FILESYSTEM, 0, _NO_PREFETCH)
    for name in ("upper", "work"):
        _mkdir_if_missing(f"{WRITABLE}/{name}")
    return WRITABLE


def stack(plan: RootPlan) -> int:
    """Stacks the layers; gives a descriptor of the container's root."""
    if not plan.overlay_options:
        return os.open(MERGED, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _make_init_layer([at for _, at in reversed(plan.layers)])
    if any(layer.filesystem == "ext4" for layer, _ in plan.layers):
        os.mknod(f"{INIT_LAYER}/{LOST_FOUND}", stat.S_IFCHR, 0)  # a whiteout: what mke2fs made is not the image's
    _take_attributes(f"{WRITABLE}/upper", [at for _, at in reversed(plan.layers)])
    os.mkdir(MERGED)
    try:
        mount("overlay", MERGED, "overlay", 0, plan.overlay_options)
    except OSError as error:
        number = error.errno or 0
        raise TetherError("overlay", os.strerror(number), number, hint_for(number, "overlay")) from error
    return os.open(MERGED, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def seal(root: int) -> None:
    """Makes the merged root read-only for the container; what is mounted on it keeps its own mode."""
    mount("none", by_handle(root), "", MS_REMOUNT | MS_BIND | MS_RDONLY)


def _make_init_layer(layers: list[str]) -> None:
    """The layer of mount points; /etc looks as the image's does, because the topmost layer decides."""
    os.mkdir(INIT_LAYER)
    for name in INIT_FOLDERS:
        os.mkdir(f"{INIT_LAYER}/{name}")
    os.mkdir(f"{INIT_LAYER}/etc")
    for name in INIT_FILES:
        files.write(f"{INIT_LAYER}/{name}", b"")
    for name, target in INIT_LINKS:
        os.symlink(target, f"{INIT_LAYER}/{name}")
    _take_attributes(INIT_LAYER, layers)
    _take_attributes(f"{INIT_LAYER}/etc", [f"{layer}/etc" for layer in layers])


def _take_attributes(folder: str, originals: list[str]) -> None:
    """Gives `folder` owner, mode and times of the first of `originals` that is a folder."""
    for original in originals:
        try:
            like = os.lstat(original)
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(like.st_mode):
            os.chown(folder, like.st_uid, like.st_gid)
            os.chmod(folder, stat.S_IMODE(like.st_mode))
            os.utime(folder, ns=(like.st_atime_ns, like.st_mtime_ns))
        return  # a whiteout or a file: nothing of it is seen from below


def _mkdir_if_missing(path: str) -> None:
    try:
        os.mkdir(path)
    except FileExistsError:
        return  # the disk has been used before
