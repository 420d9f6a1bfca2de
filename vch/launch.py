"""From options and settings to a machine: its disks, its hardware, what it brings to the spec.

What `vch run` and `vch.Machine` have in common.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from tether.link.waking import Prepare
from tether.spec import Terminal
from vch.clone.origin import Cloning
from vch.clone.store import Store
from vch.disks import DiskSet
from vch.errors import UsageError
from vch.options.process_values import DEFAULT_CAPABILITIES
from vch.options.run_options import RunOptions
from vch.options.spec_plan import (
    IMAGE_SERIAL,
    TOP_SERIAL,
    VOLUME_SERIAL,
    Placement,
    Resolver,
    interfaces_of,
    parse_resolver,
    root_of,
    user_addresses,
    volume_mounts,
)
from vch.ports import Published, check_free
from vch.prepare import Prepared
from vch.qemu.config import TEMPLATE_MAC, MachineConfig, UserNetwork
from vch.qemu.user_network import host_has_ipv6
from vch.settings import LEAST_MEMORY, MIB, Settings

RESOLV_CONF = "/etc/resolv.conf"
ID_BYTES = 32  # of a container's ID, as Docker's


def new_id() -> str:
    """The ID of a container."""
    return os.urandom(ID_BYTES).hex()


def check(options: RunOptions, settings: Settings) -> dict[str, str]:
    """What can be refused before anything is done; gives the addresses of its NFS servers, by name.

    Raises UsageError, HostError.
    """
    if (options.memory or settings.memory) < LEAST_MEMORY:
        raise UsageError(f"Minimum memory limit allowed is {LEAST_MEMORY // MIB}MB")
    if not options.shares:
        return {}
    from vch.options.share_plan import find_servers

    gateway = user_addresses(options, host_has_ipv6()).v4.gateway
    return find_servers(options.shares, dict(options.hosts), gateway)


class Launch(NamedTuple):
    """One machine to be: what was asked for, and what it was prepared with."""

    options: RunOptions
    settings: Settings
    prepared: Prepared
    id: str
    servers: Mapping[str, str]

    def disks(self) -> DiskSet:
        """The machine's disks.  Raises HostError.  The caller closes them."""
        disks = DiskSet(self.settings.home)
        try:
            if self.prepared.disk is not None:
                disks.add_image(IMAGE_SERIAL, self.prepared.disk)
            disks.add_unnamed(TOP_SERIAL, self.settings.disk_size, blank=True)
            for index, mount in enumerate(volume_mounts(self.options, self.prepared.run)):
                serial = VOLUME_SERIAL.format(index)
                if mount.name:
                    disks.add_volume(serial, mount.name, self.settings.volume_size, mount.read_only)
                else:
                    disks.add_unnamed(serial, self.settings.volume_size)
        except BaseException:
            disks.close()
            raise
        return disks

    def ports(self) -> tuple[Published, ...]:
        """The ports to publish, those left open chosen.  Raises HostError if one is taken."""
        return tuple(check_free(self.options.ports)) if self.options.network == "user" else ()

    def config(self, disks: DiskSet, ports: tuple[Published, ...]) -> MachineConfig:
        """The machine's hardware."""
        options, settings = self.options, self.settings
        network = None
        if options.network == "user":
            network = UserNetwork(self.mac, ports, user_addresses(options, host_has_ipv6()))
        return MachineConfig(
            name=f"vch-{options.name or self.id[:12]}",
            accelerator=self.prepared.verdict.accelerator,
            memory_mib=(options.memory or settings.memory) // MIB,
            cpus=options.cpus or settings.cpus,
            boot=self.prepared.boot,
            drives=tuple(disks.drives),
            network=network,
            fd_sets=disks.fd_sets,
            gives_back=settings.give_back,
            link=settings.link,
        )

    def cloning(self) -> Cloning | None:
        """What it is cloned from; None: it boots."""
        folder = self.settings.templates
        if self.options.cold or folder is None:
            return None
        root = root_of(self.prepared.layers, self.prepared.verity)
        prepare = Prepare(
            root=root,
            interfaces=interfaces_of(self.options, TEMPLATE_MAC, host_has_ipv6()),
            capabilities=DEFAULT_CAPABILITIES,
        )
        return Cloning(Store(folder), standard_mib=self.settings.memory // MIB, prepare=prepare)

    def placement(self, terminal: Terminal | None = None) -> Placement:
        """What the machine brings to the spec."""
        return Placement(
            id=self.id,
            mac=self.mac,
            layers=self.prepared.layers,
            verity=self.prepared.verity,
            resolver=_host_resolver(),
            terminal=terminal,
            host_has_ipv6=host_has_ipv6(),
            servers=self.servers,
        )

    @property
    def mac(self) -> str:
        """The user's, or a locally administered unicast address out of the ID."""
        return self.options.mac or "02:" + ":".join(self.id[at : at + 2] for at in range(0, 10, 2))


def _host_resolver() -> Resolver:
    try:
        with open(RESOLV_CONF, encoding="utf-8", errors="replace") as file:
            return parse_resolver(file.read())
    except OSError:
        return Resolver()
