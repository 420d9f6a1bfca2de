"""The boot image that a kernel is started with, out of the cache; made if it is not there (initramfs.py says of what).

Built once per content: the file's name is the key of everything that goes in, the builder included.  Every machine asks
for it, so nothing that only building needs is imported to find it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from imagebuild.boot import runtime
from imagebuild.boot.kernel import Modules, carried_modules
from imagebuild.boot.kernel_cache import Kernel, Progress, silent
from imagebuild.errors import InitramfsError

KEPT = 8  # boot images in the cache: a few kernels, a few versions of the agent; each has 4 to 5 MB, plain 11 to 16
PACKED, PLAIN = ".cpio.zst", ".cpio"  # how files in the cache end
BUILDER = ("cpio.py", "elf.py", "elfstrip.py", "initramfs.py", "modstrip.py", "reasons.py", "runtime.py")


class Initramfs(NamedTuple):
    """A boot image: `size` in bytes, compressed."""

    path: Path
    key: str
    size: int

    @property
    def unpacked(self) -> int:
        """What it takes of the guest's memory, in bytes."""
        from imagebuild.boot import initramfs

        return initramfs.unpacked_size(self.path)


def build_initramfs(
    kernel: Kernel, cache: Path, source_root: Path | None = None, progress: Progress = silent
) -> Initramfs:
    """The boot image for `kernel`, made if `cache` does not have it.

    `progress` is told if it has to be made.  `source_root` is the folder that has the agent's package (default: where
    this package is).  Raises InitramfsError, and KernelError for a kernel without its modules.
    """
    root = source_root or Path(__file__).resolve().parents[2]
    python = runtime.find_runtime()
    modules = carried_modules(kernel)
    key = _key(python, root, modules)
    path = cache / "initramfs" / f"{key}{PACKED}"
    try:
        if not path.exists():
            progress(f"boot image for {kernel.name}: build")
            _build(path, python, root, modules)
        return Initramfs(path, key, path.stat().st_size)
    except OSError as error:
        raise InitramfsError("build initramfs", str(path), error.strerror or str(error),
                             f"make room in {cache} (20 MB) and try again") from error


def plain_image(image: Initramfs) -> Path:
    """The same archive without compression, made if the cache does not have it.

    For a hypervisor that reads it from a local file: copying 11 MB into the guest costs nothing, and decompressing them
    inside an emulated one is a sixth of all that a start costs.  Raises InitramfsError.
    """
    path = image.path.with_name(image.key + PLAIN)
    try:
        if not path.exists():
            _unpack(image.path, path)
    except (OSError, ValueError) as error:
        raise InitramfsError("unpack initramfs", str(image.path), getattr(error, "strerror", None) or str(error),
                             f"make room in {path.parent} (20 MB), delete {image.path.name} and try again") from error
    return path


def _build(path: Path, python: runtime.Runtime, root: Path, modules: Modules) -> None:
    from tempfile import TemporaryDirectory

    from imagebuild.boot import initramfs

    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".building-", dir=path.parent) as scratch:
        made = Path(scratch, "image")
        made.write_bytes(initramfs.build(python, root, modules, Path(scratch, "compiled")))
        os.replace(made, path)
    _forget_old(path.parent)


def _unpack(packed: Path, path: Path) -> None:
    from tempfile import TemporaryDirectory

    from imagebuild.boot import initramfs

    with TemporaryDirectory(prefix=".building-", dir=path.parent) as scratch:
        made = Path(scratch, "image")
        made.write_bytes(initramfs.unpack(packed))
        os.replace(made, path)


def _forget_old(folder: Path) -> None:
    """Removes what has not been made for long; whoever starts a VM with one of the newest still finds it."""
    images = sorted(folder.glob(f"*{PACKED}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in images[KEPT:]:
        path.unlink(missing_ok=True)
        path.with_name(path.name.removesuffix(PACKED) + PLAIN).unlink(missing_ok=True)


def _key(python: runtime.Runtime, root: Path, modules: Modules) -> str:
    """A digest of all inputs: sources by content, what packages installed by name, size and time of change."""
    digest = hashlib.sha256(python.fingerprint().encode())
    builder = os.path.dirname(os.path.realpath(__file__))
    ours = ((name, f"{builder}/{name}") for name in BUILDER)
    for name, path in (*runtime.agent_sources(root, runtime.AGENT), *ours):
        digest.update(f"\0{name}\0".encode())
        with open(path, "rb", buffering=0) as file:
            digest.update(file.read())
    digest.update(b"".join(modules.lists().values()))
    for module in modules.files():
        found = module.stat()
        digest.update(f"\0{module.name}\0{found.st_size}\0{found.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]
