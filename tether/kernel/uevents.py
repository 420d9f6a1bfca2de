"""Waiting for devices: by the kernel's own events, with a deadline, and with a sentence that names what is missing."""

import errno
import os
import select
import time
from _socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, socket

from tether.faults import TetherError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

DEADLINE_S = 20.0  # a slow host without KVM finds its disks within three; the host's own deadline is longer
RECHECK_MS = 500  # events may be lost when the kernel's buffer is full
_NETLINK_KOBJECT_UEVENT = 15  # linux/netlink.h
_FROM_KERNEL = 1  # multicast group
_EVENT_BYTES = 8192  # larger than the kernel's UEVENT_BUFFER_SIZE


def wait_for(what: str, probe: "Callable[[], T | None]", hint: "Callable[[], str]", seconds: float = DEADLINE_S) -> "T":
    """Gives what `probe` gives as soon as that is not None; asks again at every event of a device.

    Raises TetherError (ENODEV) that names `what` after `seconds`; `hint` says then what is there instead.
    """
    found = probe()
    if found is not None:
        return found
    events = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, _NETLINK_KOBJECT_UEVENT)
    try:
        events.bind((0, _FROM_KERNEL))
        poll = select.poll()
        poll.register(events.fileno(), select.POLLIN)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = probe()  # after the socket is open: an event before that would be missed
            if found is not None:
                return found
            poll.poll(RECHECK_MS)
            _drain(events)
    finally:
        events.close()
    raise missing(what, seconds, hint())


def missing(what: str, seconds: float, hint: str) -> TetherError:
    """What to say of a device that does not come; `hint` says what is there instead."""
    return TetherError(what, f"did not appear within {seconds:g} s", errno.ENODEV, hint)


def _drain(events: socket) -> None:
    """Takes all waiting events; what they say does not matter, only that there were any."""
    while True:
        try:
            os.read(events.fileno(), _EVENT_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # events were lost: reason enough to look again
                raise
