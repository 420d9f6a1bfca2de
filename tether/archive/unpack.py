"""A tar archive becomes a tree of files below a folder, and nothing anywhere else (openat2(2)).

Where an archive says that something is below a symbolic link: a link that was there before is followed as the root says
(`root` is the container's, or the folder itself); one that the archive has made may lead to places below the folder
only.  Hard links name members below the folder.  What is in the way is replaced, except that folders are merged.
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
    ArchiveError,
    Entry,
)
from tether.archive.tarread import TarReader
from tether.kernel.syscalls import RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from tether.link.record import Record

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_AGAIN = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_SPECIAL = {CHAR: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK, FIFO: stat.S_IFIFO}
_IMPLIED = 0o755  # of folders that no member describes
_BITS = 0o7777
_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS


class Policy(Record):
    """How to unpack.

    `keep_kinds`: refuse to put a folder where something else is, and the other way round (Docker's
    noOverwriteDirNonDir).  `owner`: who gets everything; None: whom the archive says.  `plain`: an archive from
    somebody who is not trusted, for a user who may not be root: owners, devices, attributes and set-id bits are left
    out.
    """

    keep_kinds: bool = False
    owner: tuple[int, ...] | None = None  # uid and gid
    plain: bool = False


class Unpacker:
    """Unpacks one archive into the folder `top`, a descriptor; `root` and `path` say where that is for old links."""

    def __init__(self, reader: TarReader, top: int, policy: Policy, root: int = -1, path: bytes = b"") -> None:
        self._reader, self._top, self._policy = reader, top, policy
        self._root, self._path = root, path.strip(b"/")
        self._made_links: set[bytes] = set()
        self._folder_times: list[tuple[bytes, Entry]] = []
        self._parent: tuple[bytes, int] = (b"", -1)  # the last one, which the next member most probably has too
        self._parent_stale = False  # something was removed: it may be what led to that parent
        self.members = 0
        """Members unpacked."""
        self.attributes_lost = 0
        """Extended attributes that the file system there cannot keep (a tmpfs has no user attributes)."""

    def run(self) -> None:
        """All of it.  Raises ArchiveError, OSError, whose object is the member they happened at."""
        try:
            while (entry := self._reader.next()) is not None:
                try:
                    self._member(entry)
                except OSError as error:
                    raise OSError(error.errno, error.strerror, entry.name) from error
                self.members += 1
            self._reader.drain()
            self._set_folder_times()
        finally:
            self._forget_parent()

    def _member(self, entry: Entry) -> None:
        name = normal(entry.name)
        if not name:
            if entry.kind == FOLDER:  # the folder itself, "./": stays as it is, as with Docker
                return
            raise _refused(entry, "is the folder itself")
        folder, _, leaf = name.rpartition(b"/")
        if self._policy.plain and entry.kind in _SPECIAL:
            return
        parent = self._open_parent(folder)
        if entry.kind == FOLDER:
            self._folder(parent, leaf, name, entry)
            return
        if entry.kind == HARD_LINK and normal(entry.link) == name:
            raise _refused(entry, "is a hard link to itself")
        overwrite = self._clear(parent, leaf, entry)
        if entry.kind == FILE:
            self._file(parent, leaf, entry, overwrite)
        elif entry.kind == HARD_LINK:
            self._hard_link(parent, leaf, entry)
        else:
            self._special(parent, leaf, name, entry)

    def _folder(self, parent: int, leaf: bytes, name: bytes, entry: Entry) -> None:
        try:
            os.mkdir(leaf, 0o700, dir_fd=parent)
        except FileExistsError:
            self._merge(parent, leaf, entry)
        opened = os.open(leaf, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        try:
            self._attributes(opened, entry)
        finally:
            os.close(opened)
        self._folder_times.append((name, entry))

    def _merge(self, parent: int, leaf: bytes, entry: Entry) -> None:
        """A folder is there already, or something else that a folder replaces."""
        if stat.S_ISDIR(os.stat(leaf, dir_fd=parent, follow_symlinks=False).st_mode):
            return
        if self._policy.keep_kinds:
            raise _refused(entry, "cannot overwrite non-directory with directory", errno.ENOTDIR)
        os.unlink(leaf, dir_fd=parent)
        self._removed(entry)
        os.mkdir(leaf, 0o700, dir_fd=parent)

    def _clear(self, parent: int, leaf: bytes, entry: Entry) -> bool:
        """Removes what is in the way; true if it cannot be removed (a mounted file) and has to be written over."""
        try:
            there = os.stat(leaf, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(there.st_mode):
            if self._policy.keep_kinds:
                raise _refused(entry, "cannot overwrite directory with non-directory", errno.EISDIR)
            remove_tree(parent, leaf)
            self._removed(entry)
            return False
        try:
            os.unlink(leaf, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.EBUSY or entry.kind != FILE or not stat.S_ISREG(there.st_mode):
                raise
            return True
        self._removed(entry)
        return False

    def _removed(self, entry: Entry) -> None:
        self._made_links.discard(normal(entry.name))
        self._parent_stale = True

    def _file(self, parent: int, leaf: bytes, entry: Entry, overwrite: bool) -> None:
        opened = os.open(leaf, _AGAIN if overwrite else _NEW, 0o600, dir_fd=parent)
        try:
            self._reader.copy_to(opened, entry)
            self._attributes(opened, entry)
            os.utime(opened, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(opened)

    def _hard_link(self, parent: int, leaf: bytes, entry: Entry) -> None:
        folder, _, source = normal(entry.link).rpartition(b"/")
        if not source:
            raise _refused(entry, "is a hard link to the folder itself")
        try:
            opened = openat2(self._top, folder or b".", os.O_PATH | os.O_DIRECTORY, _BENEATH)
        except OSError as error:
            raise _refused(entry, f"is a hard link to {_shown(entry.link)}, which is not below the folder",
                           error.errno or errno.EXDEV) from error
        try:
            os.link(source, leaf, src_dir_fd=opened, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise _refused(entry, f"is a hard link to {_shown(entry.link)}, which is not there", errno.ENOENT) from None
        finally:
            os.close(opened)

    def _special(self, parent: int, leaf: bytes, name: bytes, entry: Entry) -> None:
        """Links, devices, named pipes."""
        if entry.kind == SYMLINK:
            os.symlink(entry.link, leaf, dir_fd=parent)
            self._made_links.add(name)
        else:
            os.mknod(leaf, _SPECIAL[entry.kind] | 0o600, entry.device, dir_fd=parent)
        if not self._policy.plain:
            uid, gid = self._owner(entry)
            os.chown(leaf, uid, gid, dir_fd=parent, follow_symlinks=False)
            if entry.kind != SYMLINK:
                os.chmod(leaf, entry.mode & _BITS, dir_fd=parent)
            self._set_xattrs(b"/proc/self/fd/%d/%b" % (parent, leaf), entry)
        os.utime(leaf, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _attributes(self, opened: int, entry: Entry) -> None:
        """Owner first: chown(2) takes set-id bits and file capabilities away."""
        if self._policy.plain:
            os.fchmod(opened, entry.mode & 0o777 | (0o700 if entry.kind == FOLDER else 0))
            return
        os.fchown(opened, *self._owner(entry))
        os.fchmod(opened, entry.mode & _BITS)
        self._set_xattrs(opened, entry)

    def _set_xattrs(self, what: "int | bytes", entry: Entry) -> None:
        for key, value in entry.xattrs:
            try:
                os.setxattr(what, key, value, follow_symlinks=isinstance(what, int))
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self.attributes_lost += 1

    def _owner(self, entry: Entry) -> tuple[int, int]:
        owner = self._policy.owner
        return (owner[0], owner[1]) if owner is not None else (entry.uid, entry.gid)

    def _set_folder_times(self) -> None:
        """Last, because every member changes the time of its folder."""
        for name, entry in reversed(self._folder_times):
            try:
                opened = self._open_folder(name)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # a later member has replaced it
                    continue
                raise
            try:
                os.utime(opened, ns=(entry.mtime_ns, entry.mtime_ns))
            finally:
                os.close(opened)

    # folders

    def _open_parent(self, path: bytes) -> int:
        if self._parent[1] >= 0 and self._parent[0] == path and not self._parent_stale:
            return self._parent[1]
        self._forget_parent()
        try:
            opened = self._open_folder(path)
        except FileNotFoundError:
            parts = path.split(b"/")
            for count in range(1, len(parts) + 1):
                self._make_implied(b"/".join(parts[:count]))
            opened = self._open_folder(path)
        self._parent = (path, opened)
        return opened

    def _make_implied(self, path: bytes) -> None:
        """A folder that a member's name implies."""
        folder, _, leaf = path.rpartition(b"/")
        opened = self._open_folder(folder)
        try:
            os.mkdir(leaf, _IMPLIED, dir_fd=opened)
        except FileExistsError:
            return  # also a link to a folder: the next one is opened through it
        finally:
            os.close(opened)

    def _open_folder(self, path: bytes) -> int:
        """A descriptor of the folder `path` below the top."""
        if not path:
            return os.open(b".", _FOLDER, dir_fd=self._top)
        if self._root < 0 or self._leads_through_ours(path):
            return openat2(self._top, path, _FOLDER, _BENEATH)
        whole = self._path + b"/" + path if self._path else path
        return openat2(self._root, whole, _FOLDER, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)

    def _leads_through_ours(self, path: bytes) -> bool:
        """A part of the path is a link that the archive has made."""
        if not self._made_links:
            return False
        parts = path.split(b"/")
        return any(b"/".join(parts[:count]) in self._made_links for count in range(1, len(parts) + 1))

    def _forget_parent(self) -> None:
        if self._parent[1] >= 0:
            os.close(self._parent[1])
        self._parent, self._parent_stale = (b"", -1), False


def normal(name: bytes) -> bytes:
    """A member's name without empty parts and "."; what it says about "..", which never leads out, is taken literally.

    Raises ArchiveError for one that begins above the folder.
    """
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise ArchiveError(_shown(name), "leads out of the folder", errno.EXDEV, "make the archive without it")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def remove_tree(parent: int, leaf: bytes) -> None:
    """Removes a folder with all that is in it; links are removed and not followed.  Raises OSError."""
    try:
        opened = os.open(leaf, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    except NotADirectoryError:
        os.unlink(leaf, dir_fd=parent)
        return
    stack = [(parent, leaf, opened, os.listdir(opened))]
    try:
        while stack:
            above, name, folder, below = stack[-1]
            if not below:
                os.close(stack.pop()[2])
                os.rmdir(name, dir_fd=above)
                continue
            one = os.fsencode(below.pop())
            if stat.S_ISDIR(os.stat(one, dir_fd=folder, follow_symlinks=False).st_mode):
                inner = os.open(one, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                stack.append((folder, one, inner, os.listdir(inner)))
            else:
                os.unlink(one, dir_fd=folder)
    finally:
        for _, _, folder, _ in stack:
            os.close(folder)


def _refused(entry: Entry, cause: str, number: int = errno.EINVAL) -> ArchiveError:
    return ArchiveError(_shown(entry.name), cause, number)


def _shown(name: bytes) -> str:
    return name[:200].decode("utf-8", "backslashreplace")
