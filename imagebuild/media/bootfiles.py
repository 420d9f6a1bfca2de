"""Kernel and initramfs of boot media: what every VM has, and for a kernel with modules those that an ISO needs."""

from __future__ import annotations

from pathlib import Path

from imagebuild.boot import cpio
from imagebuild.boot.initramfs import MODULE_FOLDER, MODULE_LIST, build_initramfs
from imagebuild.boot.kernel import Kernel, boot_modules, module_files, wanted_modules
from imagebuild.errors import KernelError

# What reads an ISO: drives at IDE and SATA controllers, the file system, and block devices made of its files.  "?": a
# kernel without it boots from the other controllers (Debian's cloud kernel has neither ATA nor AHCI).
MODULES = ("?ata_piix", "?ahci", "?usb_storage", "?xhci_pci", "sr_mod", "isofs", "loop")
_ALIGNMENT = 4  # the kernel looks for the next archive on a multiple of it (init/initramfs.c)


def boot_files(kernel: Kernel, cache: Path) -> tuple[bytes, bytes]:
    """The kernel's image and the initramfs.  Raises KernelError and InitramfsError."""
    initramfs = build_initramfs(kernel, cache).path.read_bytes()
    modules = module_files(kernel, [*wanted_modules("boot"), *MODULES])
    if modules:
        # A second archive: what it has stands in place of what the first one has of the same name.
        load = "".join(f"{path.name}\n" for path in modules).encode()
        there = {path.name for path in boot_modules(kernel)}
        entries = [cpio.file(f"{MODULE_FOLDER}/{path.name}", path.read_bytes())
                   for path in modules if path.name not in there]
        more = cpio.archive([*entries, cpio.file(MODULE_LIST, load)])
        initramfs = initramfs.ljust(-(-len(initramfs) // _ALIGNMENT) * _ALIGNMENT, b"\0") + more
    try:
        return kernel.image.read_bytes(), initramfs
    except OSError as error:
        raise KernelError("read kernel", str(kernel.image), error.strerror or str(error)) from error
