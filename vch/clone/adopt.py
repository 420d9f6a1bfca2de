"""Giving a machine that runs the disks and the published ports that it was started without."""

from __future__ import annotations

from vch.errors import MachineError
from vch.qemu.config import MachineConfig, blockdev, disk_device, node_name
from vch.qemu.monitor import Monitor


def adopt(monitor: Monitor, had: MachineConfig, config: MachineConfig) -> None:
    """All of `config` that can be plugged in, but for the first disks, which it `had` or others like them.

    Raises MachineError with what QEMU says against it.
    """
    for number, descriptor in sorted(config.fd_sets.items()):
        if number not in had.fd_sets:
            monitor.execute("add-fd", {"fdset-id": number}, (descriptor,))
    for index, drive in tuple(enumerate(config.drives))[len(had.drives) :]:
        monitor.execute("blockdev-add", blockdev(node_name(index), drive))
        monitor.execute("device_add", {**disk_device(index, drive), "id": f"disk{index}"})
    for port in config.network.published if config.network is not None else ():
        where = f"{port.protocol}:{port.host_address}:{port.host_port}-:{port.guest_port}"
        # QMP has no command of its own for this; the monitor for people answers with a sentence if it fails.
        complaint = monitor.execute("human-monitor-command", {"command-line": f"hostfwd_add net {where}"})
        if complaint:
            raise MachineError("publish port", where, str(complaint).strip(), "choose another one with -p")
