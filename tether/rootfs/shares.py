"""NFS exports in the container.  Imported when a spec has any.

Whatever speaks to a server may hang for as long as the server likes: the kernel gives a mount daemon of NFS 3 three
minutes, whatever `timeo` says.  So children mount and unmount, and PID 1 waits only so long.

An export is mounted at a place of ours, and this place inside the container.  Ours is unmounted last: the goodbye to a
server that is not there must not keep disks from being written out.
"""

import errno
import os

from tether.faults import TetherError, fault_of, one_line
from tether.kernel import files
from tether.kernel.console import say
from tether.kernel.deadline import do_within, errno_within
from tether.kernel.syscalls import MNT_DETACH, MS_BIND, MS_RDONLY, mount, umount
from tether.rootfs.inside import Mount, make_folder, mount_folder
from tether.rootfs.volumes import split_options
from tether.spec import Share, Spec

SHARES = "/s"
KINDS = ("nfs", "nfs4")
# To write out what programs have not (close(2) does) and to say goodbye.  With UNMOUNT_S of tether/container.py, KILL_S
# and FAREWELL_S of tether/agent.py it stays within a minute.
LEAVE_S = 10.0
# By which a server of NFS 4 tells its clients apart, else by host name and address, which machines behind the same
# host may share: the server would take the second for the first, started anew, and forget what the first has open.
IDENTIFIER = "/sys/fs/nfs/net/nfs_client/identifier"

_NOT_FOR_THE_KERNEL = frozenset((  # what mount(8) and systemd take out of /etc/fstab
    "_netdev", "nofail", "auto", "noauto", "defaults", "user", "nouser", "users", "nousers", "owner", "group",
))  # fmt: skip
_NO_CLIENT = "the kernel of this VM has no NFS client"
_NO_WAY = "is there a way to it from this container's network, and is the address right?"
_MUTE = "the server takes connections, or packets get lost, and nothing answers: is it the right port, does it work?"
_CLOSED = ("does the server export this to this machine, and to ports above 1023 (\"insecure\" in its exports)? QEMU's "
           "user network connects from such ports")
_HINTS = {
    errno.ECONNREFUSED: "is an NFS server listening there? NFS 3 also asks for mountport=, or rpcbind on the server",
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.ENOENT: "the server has no such export; with NFS 4 paths begin at its pseudo root",
    errno.ENOTDIR: "it is a file on the server: mount the folder it is in",
    errno.EPROTONOSUPPORT: "the server does not speak this version: try nfsvers=4.2, 4.1, 4 or 3",
    errno.EPFNOSUPPORT: "mountport= is the port of something else than a mount daemon",
    errno.EINVAL: "the kernel wants addr= with a number, and does not take one of the options; its log says which",
    errno.ETIMEDOUT: _MUTE,
    errno.EIO: _MUTE,
    errno.EHOSTUNREACH: _NO_WAY,
    errno.ENETUNREACH: _NO_WAY,
    errno.ENODEV: "make pico builds one that has; VCH_KERNEL=pico runs it",
}
_NO_LOCKS = "NFS 3 with locks wants rpc.statd, which is not in here: add nolock"


def check(spec: Spec) -> None:
    """Raises TetherError if its shares cannot be.  What is mounted earlier would be hidden below a share."""
    for share in spec.shares:
        plan(share)
        for path in (*(one.path for one in spec.volumes), *(one.path for one in spec.tmpfs)):
            if (path.rstrip(b"/") + b"/").startswith(share.path.rstrip(b"/") + b"/"):
                raise TetherError(f"volume {os.fsdecode(path)}", f"is in the NFS volume {os.fsdecode(share.path)}",
                                  errno.EINVAL, "mount one of them elsewhere")


def plan(share: Share) -> Mount:
    """What mount(2) is to be told."""
    if share.kind not in KINDS:
        raise TetherError(f"share {os.fsdecode(share.path)}", f"is of a kind that is not known: {share.kind}",
                          errno.EINVAL, f"known are {' and '.join(KINDS)}")
    flags, words = split_options(share.options, 0)
    if share.read_only:
        flags |= MS_RDONLY
    rest = [word for word in words if word not in _NOT_FOR_THE_KERNEL and not word.startswith(("x-", "comment="))]
    return Mount(path=share.path, kind=share.kind, source=share.source, flags=flags, options=",".join(rest))


def make_points(root: int, wanted: tuple[Share, ...]) -> None:
    """Makes the mount points, while the root can still be written to.  Raises OSError, TetherError."""
    for share in wanted:
        os.close(make_folder(root, share.path))


def mount_shares(root: int, id: str, wanted: tuple[Share, ...], places: list[str]) -> None:
    """Mounts them all, parents before what is below them, and notes in `places` where.  Raises TetherError."""
    if os.path.exists(IDENTIFIER):
        files.write(IDENTIFIER, id.encode())
    for number, share in enumerate(sorted(wanted, key=lambda share: share.path.count(b"/"))):
        places.append(place := f"{SHARES}/{number}")
        os.makedirs(place)
        _mount_share(root, share, place)


def _mount_share(root: int, share: Share, place: str) -> None:
    item = plan(share)

    def work() -> None:
        mount(item.source, place, item.kind, item.flags, item.options)
        mount_folder(root, Mount(path=share.path, source=place, flags=MS_BIND))

    number = errno_within(share.timeout_ms / 1000, work)
    if number:
        raise failure(item, number, share.timeout_ms / 1000)


def failure(item: Mount, number: int, seconds: float) -> TetherError:
    """Why an export is not there, and what to do about it."""
    text = os.strerror(number)
    if number == errno.ENODEV:
        text = _NO_CLIENT
    elif number == errno.ETIMEDOUT:
        text = f"was not mounted within {seconds:g} s"
    hint = _HINTS.get(number, "")
    if number == errno.ECONNREFUSED and _wants_locks(item.options.split(",")):
        hint = f"{hint}; {_NO_LOCKS}"
    return TetherError(f"NFS {item.source} on {os.fsdecode(item.path)}", text, number, hint)


def _wants_locks(words: list[str]) -> bool:
    versions = [word.partition("=")[2] for word in words if word.startswith(("vers=", "nfsvers="))]
    if versions and not versions[-1].startswith("3"):
        return False
    return "nolock" not in words and "local_lock=all" not in words


def leave(places: list[str]) -> None:
    """Writes them out and unmounts them, once nothing of the container is mounted any more; how it went is told to
    nobody but the console, since there is nobody left who could do anything about it."""
    try:
        do_within(LEAVE_S, "leave NFS", lambda: _leave(places))
    except TetherError as error:
        say(one_line(fault_of("unmount", error)))


def _leave(places: list[str]) -> None:
    os.sync()  # unmounting does not wait for NFS: what is to be written keeps the file system alive, out of sight
    for place in reversed(places):
        try:
            umount(place, MNT_DETACH)
        except OSError as error:
            if error.errno != errno.EINVAL:  # it was not mounted: the start ended before
                raise
