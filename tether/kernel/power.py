"""The end of the VM."""

import os

from tether.kernel.syscalls import RB_AUTOBOOT, RB_POWER_OFF, reboot

_ACPI = "/sys/firmware/acpi"


def power_off(reset: bool) -> None:
    """Ends the VM at once; whoever calls has synced and unmounted.

    Without ACPI the kernel turns a power-off into a halt that never ends (kernel/reboot.c); there, and where the host
    asked for it (`reset`), the machine is reset instead, which QEMU's -no-reboot takes for the end.
    """
    reboot(RB_AUTOBOOT if reset or not os.path.isdir(_ACPI) else RB_POWER_OFF)
