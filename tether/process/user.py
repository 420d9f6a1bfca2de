"""Who a process becomes, by the databases of its container; and what it is handed over.

Follows paths of the container and reads its files: not for PID 1's loop, which a hostile image would hold up.
"""

import errno
import os
import stat
import time

from tether.faults import TetherError
from tether.process.accounts import Account, resolve
from tether.rootfs.inside import open_inside

PASSWD, GROUP = b"/etc/passwd", b"/etc/group"
MAX_DATABASE = 1 << 20  # bytes
# A file that has changed so recently may change again and have the same times: Linux keeps them to the tick, 4 ms.
SETTLED_NS = 1_000_000_000


class Accounts:
    """Accounts by the databases of `root`, which are read again only for somebody else, or when they have changed.

    For a thread that lives in this root: most processes of a container are the same user's.
    """

    def __init__(self, root: int, limit: int) -> None:
        self._root, self._limit = root, limit
        self._asked: tuple[object, ...] = ()
        self._account = Account()

    def of(self, user: str, more: tuple[str, ...] = ()) -> Account:
        """As `account_of`."""
        states = (_state(self._root, PASSWD), _state(self._root, GROUP))
        asked = (user, more, *states)
        if asked != self._asked:
            self._asked = ()  # until it is known that there is such a user
            self._account = account_of(self._root, user, more, self._limit)
            newest = max(max(state[-2:], default=0) for state in states)
            if time.time_ns() - newest > SETTLED_NS:
                self._asked = asked
        return self._account


def account_of(root: int, user: str, more: tuple[str, ...] = (), limit: int | None = None) -> Account:
    """The account for Docker's USER string with `more` groups, by the databases of `root`.

    Raises TetherError for who is not there, and for what is no database, or longer than `limit`.
    """
    return resolve(user, read_database(root, PASSWD, limit), read_database(root, GROUP, limit), more)


def _state(root: int, path: bytes) -> tuple[int, ...]:
    """What differs when a file has changed; its times come last.  Nothing if there is none."""
    try:
        found = os.stat(path.lstrip(b"/"), dir_fd=root)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_database(root: int, path: bytes, limit: int | None = None) -> bytes:
    """A file of the container's /etc, or nothing if it has none.  Devices and pipes are not read.

    Of a long file it is the first MAX_DATABASE bytes, unless it is to be no longer than `limit`.
    """
    try:
        handle = open_inside(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise TetherError(os.fsdecode(path), "is not a regular file", errno.EINVAL, "the image is damaged")
        if limit is not None and found.st_size > limit:
            raise TetherError(os.fsdecode(path), os.strerror(errno.EFBIG), errno.EFBIG)
        return os.read(handle, min(found.st_size, MAX_DATABASE))  # a read of what is there, whole, from a file
    finally:
        os.close(handle)


def hand_over(stdio: "tuple[int, ...] | list[int]", account: Account, terminal: bool) -> None:
    """Gives its standard streams to who will use them, so that /dev/stdout can be opened."""
    if not account.uid and (terminal or not account.gid):
        return  # as they are
    for handle in stdio:
        if terminal:
            os.fchown(handle, account.uid, -1)
        elif not stat.S_ISCHR(os.fstat(handle).st_mode):  # /dev/null stays everybody's
            os.fchown(handle, account.uid, account.gid)
