"""Taking back what tether/net/rtnetlink.py has configured: only while the container runs."""

import errno
import os

from tether.faults import TetherError
from tether.net.rtnetlink import IFF_UP, LINK, REQUEST_ACK, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, Request, asked

_DELETED = 1  # RTM_DELADDR is RTM_NEWADDR + 1, and so on
_GONE = (errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV)  # what is to be taken back is not there any more


def link_down(index: int, name: str) -> Request:
    """Switches an interface off."""
    return Request(what=f"switch off {name}", kind=RTM_NEWLINK, flags=REQUEST_ACK,
                   body=LINK.pack(0, 0, index, 0, IFF_UP))


def undoing(requests: list[Request]) -> list[Request]:
    """The requests that remove the addresses and routes that these add, the last one first."""
    return [request.but(what=f"remove {request.what}", kind=request.kind + _DELETED, flags=REQUEST_ACK)
            for request in reversed(requests) if request.kind in (RTM_NEWADDR, RTM_NEWROUTE)]


def take_back(requests: list[Request]) -> None:
    """Removes the addresses and routes that these requests added.  Raises TetherError.

    Those that are gone already are passed over: a container may change its network as it likes.
    """
    for request, failure in asked(undoing(requests)):
        if failure and failure not in _GONE:
            raise TetherError(request.what, os.strerror(failure), failure)
