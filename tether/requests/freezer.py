"""Disks that hold still: for a snapshot, a copy, or while the VM is suspended.

FIFREEZE (ioctl_fsfreeze(2), linux/fs.h) writes a file system out and lets every later write wait until FITHAW.  PID 1
must not be among those who wait, so it never writes to the container's disks itself.  A host that freezes and never
thaws would leave the container hanging for ever: so each freeze has an end of its own.
"""

import errno
import fcntl
import os
import time

from tether.faults import TetherError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.agent import Agent
    from tether.container import Container

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
MAX_HOLD_MS = 600_000


class Hold:
    """A freeze while it lasts.  It ends by `release`, which its own timer calls at the latest."""

    def __init__(self, agent: "Agent", container: "Container", timeout_ms: int) -> None:
        if not 0 < timeout_ms <= MAX_HOLD_MS:
            raise TetherError("freeze", f"for {timeout_ms} ms", errno.EINVAL, f"1 to {MAX_HOLD_MS} ms are possible")
        self._container = container
        container.thaw = lambda: thaw(container.disks())
        self._timer = agent.reactor.call_later(timeout_ms / 1000, self.release)

    def release(self) -> None:
        """Thaws what is frozen."""
        self._timer.cancel()
        self._container.hold = None
        thaw(self._container.disks())


def freeze_within(places: list[str], timeout_ms: int) -> None:
    """Freezes them all, in half of the time that the freeze may last.

    Else nobody would thaw what is frozen only after the end.  Raises OSError, and TetherError if it took longer.
    """
    began = time.monotonic()
    freeze(places)
    if time.monotonic() - began > timeout_ms / 2000:
        thaw(places)
        raise TetherError("disks", f"took more than half of {timeout_ms} ms to be written out", errno.ETIMEDOUT,
                          "freeze for longer, or again now that less is to be written")


def freeze(places: list[str]) -> None:
    """Freezes the file systems mounted at `places`, all or none.  Raises OSError."""
    try:
        for place in places:
            _ask(place, _FIFREEZE, (errno.EOPNOTSUPP, errno.EBUSY))  # a tmpfs has no disk; a container froze it itself
    except OSError:
        thaw(places)
        raise


def thaw(places: list[str]) -> None:
    """Thaws those of them that are frozen.  Raises OSError."""
    for place in places:
        _ask(place, _FITHAW, (errno.EOPNOTSUPP, errno.EINVAL))


def _ask(place: str, request: int, harmless: tuple[int, ...]) -> None:
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, request, 0)
    except OSError as error:
        if error.errno not in harmless:
            raise OSError(error.errno, error.strerror, place) from error
    finally:
        os.close(handle)
