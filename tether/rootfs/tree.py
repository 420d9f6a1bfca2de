"""Copying a tree of the image to a volume, with all that Linux keeps about a file.

Nothing of the container runs yet, but the image may be hostile: links are copied and never followed, and a folder is
entered by a descriptor of its own.
"""

import os
import stat

_NOFOLLOW = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 20
_XATTRS_NOT_OURS = "trusted.overlay."  # what overlayfs notes for itself


def copy_tree(source: str, target: str) -> None:
    """Copies what is below folder `source` into folder `target`.  Raises OSError."""
    from_folder = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    to_folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _copy_entries(from_folder, to_folder, {})
        _copy_times(os.fstat(from_folder), target=to_folder)
    finally:
        os.close(from_folder)
        os.close(to_folder)


def _copy_entries(source: int, target: int, seen: dict[tuple[int, int], str]) -> None:
    """`seen` maps the inodes that have several names to where their first copy is."""
    for name in os.listdir(source):
        info = os.stat(name, dir_fd=source, follow_symlinks=False)
        first = seen.get((info.st_dev, info.st_ino))
        if first is not None:
            os.link(first, name, dst_dir_fd=target, follow_symlinks=False)
            continue
        _copy_one(source, target, name, info, seen)
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            seen[info.st_dev, info.st_ino] = f"{os.readlink(f'/proc/self/fd/{target}')}/{name}"


def _copy_one(source: int, target: int, name: str, info: os.stat_result, seen: dict[tuple[int, int], str]) -> None:
    mode = info.st_mode
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False)
        return
    if stat.S_ISDIR(mode):
        os.mkdir(name, 0o700, dir_fd=target)
    elif stat.S_ISREG(mode):
        _copy_content(source, target, name)
    elif stat.S_ISSOCK(mode):
        return  # a socket without its server is of no use to anybody
    else:
        os.mknod(name, mode, info.st_rdev, dir_fd=target)
        _copy_owner(f"/proc/self/fd/{target}/{name}", info)
        return
    here, there = (os.open(name, _NOFOLLOW, dir_fd=folder) for folder in (source, target))
    try:
        if stat.S_ISDIR(mode):
            _copy_entries(here, there, seen)
        _copy_owner(there, info)
        for key in os.listxattr(here):
            if not key.startswith(_XATTRS_NOT_OURS):
                os.setxattr(there, key, os.getxattr(here, key))
        _copy_times(info, there)
    finally:
        os.close(here)
        os.close(there)


def _copy_content(source: int, target: int, name: str) -> None:
    here = os.open(name, _NOFOLLOW, dir_fd=source)
    try:
        there = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            while os.sendfile(there, here, None, _PIECE):  # None: from where the file stands
                pass
        finally:
            os.close(there)
    finally:
        os.close(here)


def _copy_owner(target: "int | str", info: os.stat_result) -> None:
    """Owner first: chown(2) takes set-user-ID away."""
    os.chown(target, info.st_uid, info.st_gid)
    os.chmod(target, stat.S_IMODE(info.st_mode))


def _copy_times(info: os.stat_result, target: int) -> None:
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
