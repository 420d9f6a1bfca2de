"""NICs that are plugged into a machine while it runs, and unplugged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

from tether.link.late_messages import AddInterface as AddRequest
from tether.link.late_messages import InterfaceUp, RemoveInterface
from tether.link.record import Record
from tether.spec import Interface
from vch.errors import OperationError
from vch.promise import Promise
from vch.qemu.monitor import Monitor

UP_SECONDS = 90.0  # longer than the guest waits for the NIC and for a lease
DOWN_SECONDS = 30.0
USER_BACKEND: Mapping[str, Any] = {"type": "user", "ipv6": False}
"""A network of its own behind the host's addresses, with QEMU's own DHCP server in it."""

Ask = Callable[[Record], "Promise[Record]"]


def add(monitor: Monitor, ask: Ask, interface: Interface, backend: Mapping[str, Any]) -> InterfaceUp:
    """Plugs a NIC in and waits until its addresses are usable.

    `backend` is what QMP's netdev_add takes, without an id.  Raises GuestError or MachineError; nothing is left then.
    """
    device, netdev = _names(interface.mac)
    monitor.execute("netdev_add", {**backend, "id": netdev})
    try:
        words = {"driver": "virtio-net-pci", "id": device, "netdev": netdev, "mac": interface.mac, "romfile": ""}
        monitor.execute("device_add", words)
        try:
            return cast("InterfaceUp", ask(AddRequest(interface=interface)).result(UP_SECONDS))
        except BaseException:
            with suppress(OperationError):  # what went wrong first is what the caller wants to know
                monitor.unplug(device)
            raise
    except BaseException:
        with suppress(OperationError):
            monitor.execute("netdev_del", {"id": netdev})
        raise


def remove(monitor: Monitor, ask: Ask, mac: str) -> None:
    """Has the guest leave the network and unplugs a NIC that `add` has plugged in."""
    device, netdev = _names(mac)
    ask(RemoveInterface(mac=mac)).result(DOWN_SECONDS)
    monitor.unplug(device)
    monitor.execute("netdev_del", {"id": netdev})


def _names(mac: str) -> tuple[str, str]:
    digits = mac.lower().replace(":", "")
    return f"nic-{digits}", f"net-{digits}"
