"""Waiting for something to appear while everything else goes on: the loop's counterpart of tether/kernel/uevents.py.

The kernel's events only say that it is time to look again; what counts is what the look finds.
"""

import errno
import os
from _socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, socket

from tether.faults import TetherError
from tether.link.reactor import Reactor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

# Kinds of events: protocol of netlink(7) and multicast group.
IPV6_ADDRESSES = (0, 0x100)  # NETLINK_ROUTE, RTMGRP_IPV6_IFADDR of linux/rtnetlink.h
DEVICES = (15, 1)  # NETLINK_KOBJECT_UEVENT, those of the kernel
RECHECK_S = 0.5  # events may be lost when the kernel's buffer is full
_EVENT_BYTES = 16384


class Arrival:
    """Calls `arrived` with what `probe` finds, as soon as that is not None, or `missed` with why it will not come.

    `events` says which events make it look again.  Exactly one of the two is called, and not
    before this constructor has returned.
    """

    def __init__(self, reactor: Reactor, events: tuple[int, int], probe: "Callable[[], T | None]",
                 *, arrived: "Callable[[T], None]", missed: "Callable[[TetherError], None]",
                 late: "Callable[[], TetherError]", seconds: float) -> None:
        self._probe, self._arrived, self._missed, self._late = probe, arrived, missed, late
        protocol, group = events
        self._events = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol)
        self._events.bind((0, group))  # before the first look: an event before that would be missed
        self._watch = reactor.watch(self._events.fileno(), self._event)
        self._reactor = reactor
        self._deadline = reactor.call_later(seconds, self._is_late)
        self._again = reactor.call_later(0, self._look)
        self._over = False

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        if not self._over:
            self._over = True
            self._watch.close()
            self._events.close()
            self._deadline.cancel()
            self._again.cancel()

    def _event(self, _conditions: int) -> None:
        while True:
            try:
                os.read(self._events.fileno(), _EVENT_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # events were lost: reason enough to look
                    raise
        self._look()

    def _look(self) -> None:
        if self._over:
            return
        try:
            found = self._probe()
        except TetherError as error:
            self.cancel()
            self._missed(error)
            return
        except OSError:
            found = None  # what was looked at goes away just now: it is looked at again
        if found is None:
            self._again.cancel()
            self._again = self._reactor.call_later(RECHECK_S, self._look)
            return
        self.cancel()
        self._arrived(found)

    def _is_late(self) -> None:
        if not self._over:
            self.cancel()
            self._missed(self._late())
