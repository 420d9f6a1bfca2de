"""What a machine needs before it can be booted: image, kernel, boot image, accelerator."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imagebuild.boot.boot_image import build_initramfs, plain_image
from imagebuild.boot.kernel import choose as choose_kernel
from imagebuild.boot.runtime import START_WORDS
from imagebuild.store.store import Store
from imagebuild.transfer.pulling import PullPolicy, pull
from tether.spec import Verity
from vch.options.run_options import RunOptions
from vch.pull_view import PullView
from vch.qemu import accel
from vch.qemu.boot_plan import boot_files, find_firmware, kernel_arguments
from vch.qemu.config import BootFiles
from vch.settings import MIB, Settings

if TYPE_CHECKING:
    from imagebuild.oci.imageconfig import RunConfig
    from imagebuild.store.image import Image
    from imagebuild.store.lease import Lease

# In less memory the boot image stays compressed: plain, its 11 to 16 MB are there twice while the kernel unpacks it.
ROOMY = 192 * MIB


class Prepared(NamedTuple):
    """All of it.  `disk` is None for an image without layers; `lease` keeps the image until QEMU has its files open.

    `verity` says what each layer must be, where that is to be checked.
    """

    run: RunConfig
    layers: int
    disk: Path | None
    lease: Lease
    boot: BootFiles
    verdict: accel.Verdict
    program: str
    verity: tuple[Verity, ...] = ()


def prepare(options: RunOptions, settings: Settings, debug: Callable[[str], None]) -> Prepared:
    """Fetches, builds and finds what is missing.  Raises OperationError.  The caller releases the lease."""
    program = accel.find_qemu(settings.qemu)
    image, lease = _image(options, settings)
    try:
        debug(f"image {image.reference}: {image.digest}, {len(image.layers)} layers")
        boot, verdict = find_boot(options, settings, program, debug)
        disk = image.disk() if image.layers else None
        checked = tuple(Verity(root_hash=layer.verity_root, data_size=layer.data_size) for layer in image.layers)
        return Prepared(image.config.run, len(image.layers), disk, lease, boot, verdict, program,
                        checked if _wants_verity(options, settings) else ())
    except BaseException:
        lease.release()
        raise


def find_boot(
    options: RunOptions, settings: Settings, program: str, debug: Callable[[str], None]
) -> tuple[BootFiles, accel.Verdict]:
    """What to boot, and under what; made or fetched if it is not there.  Raises OperationError."""
    announce = debug if options.quiet or options.debug or not os.isatty(2) else _announce
    kernel = choose_kernel(settings.home, settings.kernel, announce)
    initramfs = build_initramfs(kernel, settings.home, progress=announce)
    debug(f"kernel {kernel.name} {kernel.release}, boot image {initramfs.path.name}: {initramfs.size} bytes")
    verdict = accel.choose(settings.accelerator, settings.state, kernel.pvh or kernel.image, program)
    debug(f"accelerator {verdict.accelerator.value}: {verdict.reason}")
    cpus = options.cpus or settings.cpus
    words = kernel_arguments(kernel, verdict.accelerator, cpus, options.debug)
    roomy = (options.memory or settings.memory) >= ROOMY
    archive = plain_image(initramfs) if roomy else initramfs.path
    return boot_files(kernel, archive, words, find_firmware(program), START_WORDS), verdict


def _wants_verity(options: RunOptions, settings: Settings) -> bool:
    return options.verity or settings.verity


def _announce(line: str) -> None:
    """What takes a while and happens once, to a person who waits."""
    print(f"vch: {line}", file=sys.stderr)


def _image(options: RunOptions, settings: Settings) -> tuple[Image, Lease]:
    store = Store(settings.home / "images")
    view = PullView(options.image, options.quiet)
    try:
        image = pull(
            options.image,
            store=store,
            platform=options.platform,
            policy=PullPolicy(options.pull),
            progress=view,
            verity=_wants_verity(options, settings),
        )
    finally:
        with suppress(OSError):  # a closed stderr is no reason to lose the image
            view.finish()
    return image, store.pin(image)
