"""Kernels to boot, and which files of their modules the initramfs needs.

Two providers give the same small thing, a ``Kernel``:

- ``debian_cloud`` (fetched by debian.py): Debian's cloud kernel, downloaded with apt-get, unpacked, never installed.
  Needs no compiler and no root.  14 MB, drivers as modules.
- ``pico`` (pico.py, built by pico_build.py): our own build, everything needed built in.  5 MB, three times faster to
  boot.

``choose`` takes pico when ``make pico`` has built it.  docs/kernel.md has the numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from imagebuild.boot import kernel_cache, kmod, pico
from imagebuild.boot.kernel_cache import Kernel, Progress, silent
from imagebuild.errors import KernelError

DEBIAN = "debian-cloud"
MODULE_INDEX = "modules.json"
MODULE_FOLDER = "lib/modules"  # of the boot image
MODULE_LIST = f"{MODULE_FOLDER}/load"
DEMAND_LIST = f"{MODULE_FOLDER}/demand"


def choose(cache: Path, prefer: str | None = None, progress: Progress = silent) -> Kernel:
    """The kernel to boot: the one asked for by name ("pico", "debian-cloud"), else pico if built, else Debian's."""
    if prefer not in (None, pico.KIND, DEBIAN):
        raise KernelError("choose kernel", str(prefer), "no kernel has this name", f"use {pico.KIND} or {DEBIAN}")
    if prefer != DEBIAN:
        built = pico.pico(cache)
        if built is not None:
            return built
        if prefer == pico.KIND:
            raise KernelError("choose kernel", pico.KIND, "it has not been built for the current configuration",
                              "run `make pico` (about 25 CPU minutes, once)")
    return debian_cloud(cache, progress=progress)


def debian_cloud(cache: Path, *, refresh: bool = False, progress: Progress = silent) -> Kernel:
    """Debian's cloud kernel.  What the cache has is taken; ``refresh`` asks apt whether there is a newer one."""
    known = kernel_cache.newest(cache, DEBIAN)
    if known is not None and not refresh:
        return known[0]
    from imagebuild.boot import debian  # late: once per kernel

    return debian.fetch(cache, progress)


class Modules(NamedTuple):
    """Kernel modules to bring along: `load` at once, in this order; `demand` by name, each with what it depends on.

    What is loaded at once is not listed again, because the agent removes those files.
    """

    load: list[Path]
    demand: dict[str, list[Path]]

    def files(self) -> list[Path]:
        """Every file, once."""
        return list(dict.fromkeys((*self.load, *(path for paths in self.demand.values() for path in paths))))

    def lists(self) -> dict[str, bytes]:
        """The two lists that the agent reads, by their names in the boot image; none for a kernel without modules."""
        if not self.files():
            return {}
        load = "".join(f"{path.name}\n" for path in self.load)
        later = {name: [path.name for path in paths if path not in self.load] for name, paths in self.demand.items()}
        demand = "".join(f"{' '.join((name, *files))}\n" for name, files in later.items())
        return {MODULE_LIST: load.encode(), DEMAND_LIST: demand.encode()}


def carried_modules(kernel: Kernel) -> Modules:
    """What the boot image has of them; nothing for a kernel with everything built in."""
    if kernel.modules is None:
        return Modules([], {})
    return Modules(boot_modules(kernel), demand_modules(kernel))


def wanted_modules(section: str) -> list[str]:
    """The names of a section ("boot", "demand") of initramfs/modules.list, "?" kept."""
    return kmod.parse_list(kernel_cache.data_file("modules.list").read_text(encoding="utf-8"))[section]


def boot_modules(kernel: Kernel) -> list[Path]:
    """The module files that the agent loads first, in load order; none for a kernel with everything built in."""
    return module_files(kernel, wanted_modules("boot"))


def demand_modules(kernel: Kernel) -> dict[str, list[Path]]:
    """Module name -> its files in load order, for those that are carried along and loaded when asked for.

    A name whose kernel has it built in, or not at all ("?"), is left out.
    """
    files = {kmod.canonical(name.removeprefix("?")): module_files(kernel, [name])
             for name in wanted_modules("demand")}
    return {name: paths for name, paths in files.items() if paths}


def module_files(kernel: Kernel, wanted: Iterable[str]) -> list[Path]:
    """The module files to load, in load order, for a list of names.

    Empty for a kernel without modules.  Raises KernelError for a name the kernel does not have, and for a file of
    the cache that is missing or not whole.
    """
    if kernel.modules is None:
        return []
    index = _module_index(kernel.modules)
    files: list[Path] = []
    for module in kmod.closure(index, wanted, kernel.release):
        path = kernel.modules / module.file
        if not path.is_file() or path.stat().st_size != module.size:
            raise KernelError("read kernel module", str(path), "it is missing or not whole",
                              f"delete {kernel.modules.parent} and try again")
        files.append(path)
    return files


@functools.cache
def _module_index(modules: Path) -> kmod.ModuleIndex:
    cached = modules.with_name(MODULE_INDEX)
    try:
        return kmod.loads(cached.read_text(encoding="utf-8"), str(cached))
    except OSError as error:
        raise KernelError("read module index", str(cached), error.strerror or str(error),
                          f"delete {modules.parent} and try again") from error
