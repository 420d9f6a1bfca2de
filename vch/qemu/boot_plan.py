"""How a kernel is booted: which file, through which firmware, with which words.  Pure but for looking for qboot.

The words and what each is worth are measured in docs/kernel.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vch.qemu.config import CONSOLE_DEVICE, Accelerator, BootFiles

if TYPE_CHECKING:
    from imagebuild.boot.kernel_cache import Kernel

FIRMWARE = "qboot.rom"  # QEMU's minimal firmware: 0.13 s less than SeaBIOS
PICO = "pico"  # Kernel.name of our own build

ALWAYS = (
    f"console={CONSOLE_DEVICE}",
    "panic=-1",  # reboot at once: with -no-reboot QEMU ends, and we know within milliseconds
    "dummy.numdummies=0",  # or each container sees an interface dummy0
    "swiotlb=noforce",  # no device here needs bounce buffers; where memory can be added they would take 64 MiB
    "percpu_alloc=page",  # one processor's variables in pages of 4 KiB instead of 2 MiB: 4 MiB of memory less
)
EMULATED = (
    "noreplace-smp",
    "no_timer_check",  # an emulated timer can fail the check on a busy host
    # On a busy host ticks are late, and a watchdog that counts them finds the TSC too fast: the guest would then ask an
    # emulated timer for each reading of the clock, or even count ticks itself and lose time.
    "tsc=reliable",
    "mitigations=off",  # an emulated processor does not speculate
    "libata.force=norst",
)
# One processor has the PIT; several need their local timers.
EMULATED_SINGLE = ("nolapic_timer",)
# Every device here has MSI, and the interrupt table of `pc` costs a second to interpret.  Debian's kernel, entered by
# PVH, then finds no APIC and so no MSI either; several processors are not found by any kernel.
PICO_SINGLE = ("acpi=noirq",)


def kernel_arguments(
    kernel: Kernel, accelerator: Accelerator, cpus: int, debug: bool
) -> tuple[str, ...]:
    """The kernel command line."""
    emulated, single = accelerator is Accelerator.TCG, cpus == 1
    return (
        *ALWAYS,
        "tether.debug" if debug else "quiet",
        *(EMULATED if emulated else ()),
        *(EMULATED_SINGLE if emulated and single else ()),
        *(PICO_SINGLE if kernel.name == PICO and single else ()),
    )


def boot_files(
    kernel: Kernel, initramfs: Path, arguments: tuple[str, ...], firmware: Path | None, start: tuple[str, ...] = ()
) -> BootFiles:
    """The plain kernel where it can be entered directly, else the one that unpacks itself.

    qboot only enters kernels directly, and leaves the timers as it finds them: Debian's kernel then waits for ever.
    """
    if kernel.pvh is None:
        return BootFiles(kernel.image, initramfs, arguments, start=start)
    return BootFiles(kernel.pvh, initramfs, arguments, firmware if kernel.name == PICO else None, start)


def find_firmware(program: str) -> Path | None:
    """qboot beside QEMU's other files, if this QEMU has it."""
    folder = Path(os.path.realpath(program)).parent.parent / "share" / "qemu"
    return folder / FIRMWARE if (folder / FIRMWARE).is_file() else None
