"""Trees of the container's files out of it and into it, as tar archives; done by a worker (tether/requests/worker.py).

The rules are those of Docker's archive endpoints, which `docker cp` uses.
"""

import errno
import os

from tether.archive.pack import Packer
from tether.archive.tarread import TarReader
from tether.archive.unpack import Policy, Unpacker
from tether.faults import TetherError
from tether.kernel.mounts import Mounted, read_mounts
from tether.link.late_messages import Put, Unpacked
from tether.link.messages import Done
from tether.process.user import account_of
from tether.requests.stat import base_name, check_path
from tether.requests.worker import Desk
from tether.rootfs.inside import open_inside
from tether.rootfs.root import MERGED

# What the kernel makes up when it is read, and devices: no data of the container's.
_MADE_UP = frozenset((
    "proc", "sysfs", "cgroup", "cgroup2", "devpts", "devtmpfs", "mqueue", "debugfs", "tracefs", "securityfs", "bpf",
    "configfs", "fusectl", "binfmt_misc", "pstore", "efivarfs", "rpc_pipefs",
))  # fmt: skip
_DEV = f"{MERGED}/dev"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY


def get(desk: Desk, path: bytes) -> Done:
    """Writes the archive of what is at `path`: one member of that name, and all below it.

    A symbolic link at the end of `path` is a member, not followed.  "/." at the end names the members "./...".  What is
    mounted below comes along, but for the kernel's own file systems.  Raises OSError, TetherError.
    """
    check_path(path)
    mounts = read_mounts()
    desk.confine()
    packer = Packer(desk.data, made_up(mounts))
    folder, leaf, name = split(path)
    try:
        opened = open_inside(desk.root, folder, _FOLDER)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    if os.fstat(opened).st_dev in packer.hidden:  # who asks for a file of /proc wants it
        packer.hidden = frozenset()
    packer.add(opened, os.fsdecode(leaf), name)
    packer.finish()
    return Done()


def put(desk: Desk, message: Put) -> Unpacked:
    """Unpacks the archive that comes into the folder `path`.  Raises ArchiveError, OSError, TetherError."""
    check_path(message.path)
    desk.confine()
    try:
        top = open_inside(desk.root, message.path, _FOLDER)
    except NotADirectoryError as error:
        raise TetherError(os.fsdecode(message.path), "is not a directory", errno.ENOTDIR,
                          "give the folder to unpack into") from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, message.path) from error
    policy = Policy(keep_kinds=message.keep_kinds, owner=_owner(desk, message.owner))
    unpacker = Unpacker(TarReader(desk.data), top, policy, desk.root, message.path)
    unpacker.run()
    return Unpacked(members=unpacker.members, attributes_lost=unpacker.attributes_lost)


def made_up(mounts: tuple[Mounted, ...]) -> frozenset[int]:
    """Devices (st_dev) of the file systems that are no data: the kernel's own, and the container's /dev."""
    return frozenset(one.device for one in mounts if one.kind in _MADE_UP or one.path == _DEV)


def split(path: bytes) -> tuple[bytes, bytes, bytes]:
    """Folder to open, name in it, and name of the member, for what a user calls `path`."""
    name = base_name(path)
    if name in (b"/", b".", b".."):
        return path, b".", b"."
    if path.endswith(b"/"):  # a folder, or a link to one
        return path, b".", name
    folder, _, leaf = path.rpartition(b"/")
    return folder or b"/", leaf, leaf


def _owner(desk: Desk, user: str) -> tuple[int, int] | None:
    """Who the files shall belong to; None: whom the archive says."""
    if not user:
        return None
    account = account_of(desk.root, user)
    return account.uid, account.gid
