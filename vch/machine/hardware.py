"""What is done to a running machine from outside: suspended, given disks, memory, processors, its clock kept.

QEMU and the guest have to act together: a disk is plugged in before the guest mounts it, and unmounted before it is
pulled.  Each function waits for both and raises MachineError (QEMU refused) or GuestError (the guest did).
"""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, cast

from tether.link.late_messages import (
    AttachVolume,
    DetachVolume,
    Freeze,
    HardwareInUse,
    SetClock,
    Thaw,
    UseHardware,
)
from tether.spec import Disk, Volume
from vch.errors import MachineError, UsageError
from vch.qemu.config import BLOCK_MIB, blockdev

if TYPE_CHECKING:
    from tether.link.record import Record
    from vch.machine.driver import Driver
    from vch.qemu.config import Drive, MachineConfig

GUEST_SECONDS = 90.0  # for the guest to see a device, mount it and fill it, or to write out what it holds
FREEZE_MS = 60_000
_CONTROLLER = "scsi.0"


class Hardware:
    """What has been added to one machine so far."""

    def __init__(self, driver: Driver, config: MachineConfig, boot_mib: int) -> None:
        """`boot_mib`: the memory that QEMU was started with, which a clone's may be less than its machine's."""
        self._driver, self._config, self._boot_mib = driver, config, boot_mib
        self._numbers = count()
        self._disks: dict[bytes, str] = {}  # path in the container -> ID of its device
        self._added_mib = 0
        self._cpus = config.cpus

    # suspend and resume

    def pause(self) -> None:
        """Has the guest write everything out and hold still, then stops its processors."""
        self._ask(Freeze(timeout_ms=FREEZE_MS))
        try:
            self._monitor("stop")
        except MachineError:
            self._ask(Thaw())
            raise

    def resume(self) -> None:
        """Goes on, with the clock set to what it is now."""
        self._monitor("cont")
        self._ask(SetClock(realtime_ns=time.time_ns()))
        self._ask(Thaw())

    def press_power_button(self) -> None:
        """As on a real machine: the guest ends its processes and powers off."""
        self._monitor("system_powerdown")

    # disks

    def attach(self, drive: Drive, path: str, no_copy: bool) -> None:
        """Plugs in a disk and has it mounted at `path`."""
        number = next(self._numbers)
        device, node = f"added{number}", f"added-drive{number}"
        self._monitor("blockdev-add", **blockdev(node, drive))
        options = {} if drive.read_only else {"werror": "enospc"}
        try:
            self._monitor("device_add", driver="scsi-hd", bus=_CONTROLLER, lun=len(self._config.drives) + number,
                          drive=node, id=device, serial=drive.serial, **options)
        except MachineError:
            self._monitor("blockdev-del", **{"node-name": node})
            raise
        where = path.encode("utf-8", "surrogateescape")
        volume = Volume(disk=Disk(serial=drive.serial), path=where, read_only=drive.read_only, no_copy=no_copy)
        try:
            self._ask(AttachVolume(volume=volume))
        except MachineError:
            with suppress(MachineError):  # the guest's reason is the one to tell
                self._unplug(device)
            raise
        self._disks[where] = device

    def detach(self, path: str) -> None:
        """Has the guest unmount the volume at `path`, and pulls its disk."""
        where = path.encode("utf-8", "surrogateescape")
        if where not in self._disks:
            raise UsageError(f"no disk was attached at {path}")
        self._ask(DetachVolume(path=where))
        self._unplug(self._disks.pop(where))

    def _unplug(self, device: str) -> None:
        self._driver.monitor.unplug(device)
        self._monitor("blockdev-del", **{"node-name": device.replace("added", "added-drive")})

    # memory and processors

    def add_memory(self, mib: int) -> HardwareInUse:
        """Plugs in `mib` MiB of memory, of which the guest makes use."""
        if mib <= 0 or mib % BLOCK_MIB:
            raise UsageError(f"memory is added in blocks of {BLOCK_MIB} MiB")
        number = next(self._numbers)
        backend = f"memory{number}"
        self._monitor("object-add", **{"qom-type": "memory-backend-ram", "id": backend, "size": mib << 20})
        try:
            self._monitor("device_add", driver="pc-dimm", id=f"dimm{number}", memdev=backend)
        except MachineError:
            self._monitor("object-del", id=backend)
            raise
        self._added_mib += mib
        return self._use()

    def add_cpus(self, more: int) -> HardwareInUse:
        """Plugs in `more` processors, of which the guest makes use."""
        slots = cast("list[dict[str, object]]", self._monitor("query-hotpluggable-cpus"))
        free = [slot for slot in slots if "qom-path" not in slot]
        free.reverse()  # QEMU lists the highest first
        if not 0 < more <= len(free):
            raise UsageError(f"{more} processors cannot be added: there is room for {len(free)}")
        for slot in free[:more]:
            place = cast("dict[str, object]", slot["props"])
            self._monitor("device_add", driver=slot["type"], id=f"cpu{next(self._numbers)}", **place)
            self._cpus += 1
        return self._use()

    def _use(self) -> HardwareInUse:
        wanted = UseHardware(cpus=self._cpus, boot_mib=self._boot_mib, added_mib=self._added_mib)
        return cast("HardwareInUse", self._ask(wanted))

    # both ends

    def _monitor(self, command: str, **arguments: object) -> object:
        return self._driver.monitor.execute(command, arguments)

    def _ask(self, message: Record) -> Record:
        return self._driver.request(message).result(GUEST_SECONDS)
