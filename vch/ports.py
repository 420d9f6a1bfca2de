"""Publishing ports: Docker's -p grammar ([IP:][HOST[-HOST]:]PORT[-PORT][/tcp|udp]), and whether a host port is free."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vch.errors import HostError

MAX_PORT = 65535
ANY_ADDRESS = "0.0.0.0"
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class Published(NamedTuple):
    """One port of the container made reachable at one of the host.  `host_port` 0 asks for any free one."""

    protocol: str
    host_address: str
    host_port: int
    guest_port: int

    @property
    def shown(self) -> str:
        return f"{self.host_address}:{self.host_port}/{self.protocol}"


def parse_ports(text: str) -> list[Published]:
    """One -p value; ValueError with Docker's words if it is none."""
    where, container, protocol = _split(text)
    if protocol not in _KINDS:
        raise ValueError(f"invalid proto: {protocol}")
    address, host = where
    first, last = _range(container, f"invalid containerPort: {container}")
    host_first, host_last = _range(host, f"invalid hostPort: {host}") if host else (0, 0)
    count = last - first + 1
    if host and host_last - host_first + 1 != count:
        if count > 1 or host_last == host_first:
            raise ValueError(f"invalid ranges specified for container and host Ports: {container} and {host}")
        host_last = host_first  # Docker takes any free one of the range; the first is one of them
    return [
        Published(protocol, address, host_first + index if host else 0, first + index)
        for index in range(count)
    ]


def _split(text: str) -> tuple[tuple[str, str], str, str]:
    """"ip:host:container/proto" -> ((ip, host), container, proto)."""
    rest, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    front, _, container = rest.rpartition(":")
    if not container:
        raise ValueError(f"no port specified: {text}<empty>")
    address, colon, host = front.rpartition(":")
    if not colon:
        address, host = "", front
    if address.startswith("[") or ":" in address:
        raise ValueError(f"invalid IP address: {address}: only IPv4 addresses can be published on")
    if address:
        try:
            socket.inet_pton(socket.AF_INET, address)
        except OSError:
            raise ValueError(f"invalid IP address: {address}") from None
    return (address or ANY_ADDRESS, host), container, protocol


def _range(text: str, complaint: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    numbers = [first, last] if dash else [first, first]
    if not all(number.isascii() and number.isdecimal() and len(number) <= len(str(MAX_PORT)) for number in numbers):
        raise ValueError(complaint)
    low, high = int(numbers[0]), int(numbers[1])
    if not 0 < low <= high <= MAX_PORT:
        raise ValueError(complaint)
    return low, high


def check_free(ports: Sequence[Published]) -> list[Published]:
    """Sees to it that every host port can be had, and picks one where any will do.

    QEMU binds them again a moment later: what somebody else takes in between shows as its message, only less early.
    Raises HostError that names the port.
    """
    probes: list[socket.socket] = []
    chosen = []
    try:
        for port in ports:
            probe = socket.socket(socket.AF_INET, _KINDS[port.protocol])
            probes.append(probe)
            if port.protocol == "tcp":  # as QEMU does, or a port in TIME_WAIT would seem taken
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((port.host_address, port.host_port))
                if port.protocol == "tcp":
                    probe.listen(1)
            except OSError as error:
                raise HostError("publish port", port.shown, error.strerror or str(error), _remedy(port)) from error
            chosen.append(port._replace(host_port=probe.getsockname()[1]))
    finally:
        for probe in probes:
            probe.close()
    return chosen


def _remedy(port: Published) -> str:
    if 0 < port.host_port < 1024:
        return "choose a host port from 1024 up, or one that nobody uses"
    return "choose another host port, or stop what uses it"


def describe_chosen(asked: Iterable[Published], chosen: Iterable[Published]) -> list[str]:
    """What to tell the user of ports that we chose: "8080/tcp -> 0.0.0.0:40001"."""
    return [
        f"{port.guest_port}/{port.protocol} -> {port.host_address}:{port.host_port}"
        for wish, port in zip(asked, chosen, strict=True)
        if wish.host_port == 0
    ]
