"""NFS volumes: from what the user said to what the kernel of the machine is told.

The kernel resolves no names, and in the machine nothing does it for the kernel.  So they are resolved here, on the
host; the machine reaches what the host reaches, but for the host's own loopback, which is another one in there.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping

from tether.spec import Share
from vch.errors import HostError, UsageError
from vch.options.values import HOST_GATEWAY, SERVER_WORD, ShareMount

STEP = "find NFS server"


def find_servers(mounts: Iterable[ShareMount], hosts: Mapping[str, str], gateway: str) -> dict[str, str]:
    """The address of each server.  `hosts` are names of --add-host, `gateway` is where the machine finds the host.

    Raises HostError for a name that nobody knows, UsageError for an address that leads nowhere in the machine.
    """
    return {mount.server: _find(mount.server, hosts, gateway) for mount in mounts}


def share_of(mount: ShareMount, servers: Mapping[str, str]) -> Share:
    """What the spec says of one."""
    address = servers.get(mount.server, mount.server)
    words = [word for word in mount.options.split(",") if word and not word.startswith(SERVER_WORD)]
    source = mount.device
    if source.startswith(":"):  # Docker's way; with its server it can be told from others in messages and mountinfo
        source = (f"[{address}]" if ":" in address else address) + source
    return Share(
        path=os.fsencode(mount.path),
        source=source,
        kind=mount.kind,
        options=",".join([f"{SERVER_WORD}{address}", *words]),
        read_only=mount.read_only,
    )


def _find(name: str, hosts: Mapping[str, str], gateway: str) -> str:
    known = hosts.get(name, name)
    if known == HOST_GATEWAY:
        return gateway
    address = _resolved(known.strip("[]"))
    if ipaddress.ip_address(address).is_loopback:
        raise UsageError(f"NFS server {name}: {address} is the container itself in there; the host is {gateway}, "
                         f"or addr={HOST_GATEWAY}")
    return address


def _resolved(name: str) -> str:
    """An address; IPv4 where there are both, as Docker does it."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else None
        raise HostError(STEP, name, cause or str(error), "give its address: addr=192.0.2.7") from error
    best = min(found, key=lambda one: one[0] != socket.AF_INET)
    return str(best[4][0])
