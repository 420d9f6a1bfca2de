"""What is mounted over the root: tmpfs, volumes, and the files that name things.

A volume is an ext4 disk.  An empty one is first filled with what the image has at its place (Docker's rule), and gets
the owner and mode of that folder.  The folder lost+found, which mke2fs makes, is removed while it is empty: programs
that want an empty data folder (PostgreSQL's initdb) refuse it, and e2fsck makes it anew when it needs it.
"""

import errno
import os
import stat

from tether.faults import TetherError
from tether.kernel import files
from tether.kernel.syscalls import (
    MS_BIND,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_RELATIME,
    MS_REMOUNT,
    mount,
)
from tether.net.names import hostname_text, hosts_text, resolv_text
from tether.rootfs.disks import find_disk
from tether.rootfs.inside import Mount, by_handle, make_folder, mount_file, mount_folder, open_inside
from tether.rootfs.root import LOST_FOUND, mount_disk
from tether.spec import Network, Tmpfs, Volume

VOLUMES = "/v"
NAMES = "/n"
NAME_FILES = ("hosts", "hostname", "resolv.conf")
NAMES_SIZE = "size=1m,mode=0755"  # the container may write to its hosts file, but not fill our memory with it
VOLUME_FILESYSTEM = "ext4"
_MACHINE_ID, _MACHINE_ID_DIGITS, _HEX = b"/etc/machine-id", 32, "0123456789abcdef"

# mount(8) options that are flags of mount(2); Docker's --tmpfs has noexec, nosuid and nodev unless told otherwise.
_FLAGS = {
    "ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC, "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME, "relatime": MS_RELATIME,
}  # fmt: skip
_CLEARING = {
    "rw": MS_RDONLY, "suid": MS_NOSUID, "dev": MS_NODEV, "exec": MS_NOEXEC, "atime": MS_NOATIME,
    "diratime": MS_NODIRATIME, "norelatime": MS_RELATIME,
}  # fmt: skip
_TMPFS_DEFAULT = MS_NOSUID | MS_NODEV | MS_NOEXEC


def tmpfs_mount(tmpfs: Tmpfs) -> Mount:
    """The mount for Docker's --tmpfs."""
    flags, rest = split_options(tmpfs.options, _TMPFS_DEFAULT)
    return Mount(path=tmpfs.path, kind="tmpfs", flags=flags, options=",".join(rest))


def split_options(options: str, flags: int) -> tuple[int, list[str]]:
    """Words that are flags become flags, beside those that are there; the rest is for the file system."""
    rest = []
    for word in options.split(","):
        if word in _FLAGS:
            flags |= _FLAGS[word]
        elif word in _CLEARING:
            flags &= ~_CLEARING[word]
        elif word:
            rest.append(word)
    return flags, rest


def mount_tmpfs(root: int, wanted: tuple[Tmpfs, ...]) -> None:
    """Mounts the tmpfs that the spec asks for."""
    for tmpfs in wanted:
        mount_folder(root, tmpfs_mount(tmpfs))


def mount_volumes(root: int, wanted: tuple[Volume, ...]) -> list[str]:
    """Mounts the volumes, parents before what is below them; gives the places where their disks are mounted."""
    places = []
    if wanted:
        os.mkdir(VOLUMES)
    for number, volume in enumerate(sorted(wanted, key=lambda volume: volume.path.count(b"/"))):
        place = f"{VOLUMES}/{number}"
        os.mkdir(place)
        places.append(place)
        mount_volume(root, volume, place)
    return places


def mount_volume(root: int, volume: Volume, place: str) -> None:
    """Mounts one volume's disk at `place`, and this inside the container."""
    mount_disk(find_disk(volume.disk), place, VOLUME_FILESYSTEM, MS_RDONLY if volume.read_only else 0)
    if not volume.read_only:
        _prepare(root, volume, place)
    mount_folder(root, Mount(path=volume.path, source=place, flags=MS_BIND))


def mount_names(root: int) -> None:
    """Mounts our hosts, hostname and resolv.conf over the container's, empty."""
    os.mkdir(NAMES)
    mount("tmpfs", NAMES, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NAMES_SIZE)
    for name in NAME_FILES:
        files.write(f"{NAMES}/{name}", b"")
        mount_file(root, _named(name))


def write_names(root: int, network: Network, read_only: bool) -> None:
    """Fills hosts, hostname and resolv.conf; where the container's root is read-only they are too."""
    for name, text in zip(NAME_FILES, (hosts_text(network), hostname_text(network), resolv_text(network)), strict=True):
        files.write(f"{NAMES}/{name}", text)
        if read_only:
            mount_file(root, _named(name).but(flags=MS_BIND | MS_REMOUNT | MS_RDONLY))


def _named(name: str) -> Mount:
    return Mount(path=b"/etc/" + name.encode(), source=f"{NAMES}/{name}", flags=MS_BIND)


def mount_machine_id(root: int, id: str, read_only: bool) -> None:
    """Gives a machine ID to an image that leaves it open: an empty /etc/machine-id asks for one (machine-id(5)).

    It is made from the container's ID.  After `mount_names`.  An image that has one keeps it, and one that has no such
    file gets none, as with Docker.
    """
    number = id[:_MACHINE_ID_DIGITS]
    try:
        handle = open_inside(root, _MACHINE_ID)
    except (FileNotFoundError, NotADirectoryError):
        return
    found = os.fstat(handle)
    os.close(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_size or len(number) < _MACHINE_ID_DIGITS or number.strip(_HEX):
        return
    files.write(f"{NAMES}/machine-id", number.encode() + b"\n")
    item = Mount(path=_MACHINE_ID, source=f"{NAMES}/machine-id", flags=MS_BIND)
    mount_file(root, item)
    if read_only:
        mount_file(root, item.but(flags=MS_BIND | MS_REMOUNT | MS_RDONLY))


def _prepare(root: int, volume: Volume, place: str) -> None:
    """Fills an empty volume from the image."""
    _remove_lost_found(place)
    if os.listdir(place):
        return
    source = make_folder(root, volume.path)
    try:
        like = os.fstat(source)
        os.chown(place, like.st_uid, like.st_gid)
        os.chmod(place, like.st_mode & 0o7777)
        if not volume.no_copy:
            from tether.rootfs.tree import copy_tree  # late: few volumes are new

            copy_tree(by_handle(source), place)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise TetherError(f"volume {os.fsdecode(volume.path)}", "is too small for what the image has there",
                              errno.ENOSPC, "make it larger, or do not copy (volume-nocopy)") from error
        raise
    finally:
        os.close(source)


def _remove_lost_found(place: str) -> None:
    try:
        os.rmdir(f"{place}/{LOST_FOUND}")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
