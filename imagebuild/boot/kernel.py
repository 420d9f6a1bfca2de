"""Kernels to boot, and which files of their modules the initramfs needs.

Two providers give the same small thing, a ``Kernel``:

- ``debian_cloud``: Debian's cloud kernel, downloaded with apt-get, unpacked, never installed.  Needs no compiler and
  no root.  14 MB, drivers as modules.
- ``pico`` (imagebuild/boot/pico.py): our own build, everything needed built in.  5 MB, three times faster to boot.

``choose`` takes pico when ``make pico`` has built it.  docs/kernel.md has the numbers.
"""

from __future__ import annotations

import functools
import importlib.resources
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from imagebuild.boot import bzimage, kernel_cache, kmod, pico
from imagebuild.boot.deb import unpack_deb
from imagebuild.boot.kernel_cache import CONFIG, IMAGE, MODULES, PVH, Kernel, Progress, silent
from imagebuild.errors import KernelError

__all__ = ["Kernel", "boot_modules", "choose", "debian_cloud", "demand_modules", "module_files", "wanted_modules"]

META_PACKAGE = "linux-image-cloud-amd64"
_PACKAGE = re.compile(r"\b(linux-image-([0-9][\w.+~-]*-cloud-amd64)) \(= ([\w.+~:-]+)\)")
DEBIAN = "debian-cloud"
MODULE_INDEX = "modules.json"
APT_TIMEOUT_S = 900  # 26 MB at 30 kB/s; apt-get itself gives up on a silent server long before

_NO_APT = "run it on Debian 12, or build the pico kernel (make pico)"


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
    if platform.machine() != "x86_64":
        raise KernelError("fetch kernel", META_PACKAGE, f"this host is {platform.machine()}", "use an x86-64 host")
    if shutil.which("apt-get") is None:
        raise KernelError("fetch kernel", META_PACKAGE, "there is no apt-get here", _NO_APT)
    package, release, version = _candidate()
    name = f"{DEBIAN}-{_safe(version)}"
    with kernel_cache.making(cache, DEBIAN, progress) as (scratch, lock):
        done = kernel_cache.load(kernel_cache.kernels_folder(cache) / name)
        if done is not None:  # another process was faster, or nothing is newer
            kernel_cache.point_to(cache, name, DEBIAN)
            return done[0]
        try:
            progress(f"{DEBIAN} kernel: download {version}")
            deb = _download(package, version, scratch, lock)
            progress(f"{DEBIAN} kernel: unpack {release}")
            made = scratch / "made"
            made.mkdir()
            unpack_deb(deb, made, _placed(release))
            _complete(made, package)
            record = {"name": DEBIAN, "release": release, "version": version, "package": package}
            return kernel_cache.install(cache, made, name, DEBIAN, record)
        except OSError as error:
            raise KernelError("unpack kernel", package, error.strerror or str(error),
                              f"make room in {cache} (200 MB) and try again") from error


def _candidate() -> tuple[str, str, str]:
    """(package, release, version) that the meta package depends on, in the version apt would install."""
    shown = _apt(["apt-cache", "--no-all-versions", "show", META_PACKAGE], "find kernel package", Path("/"))
    depends = [line for line in shown.splitlines() if line.startswith("Depends:")]
    found = _PACKAGE.search(depends[0]) if depends else None
    if found is None:
        raise KernelError("find kernel package", META_PACKAGE, "apt knows no kernel that it depends on",
                          "run `apt-get update` as root; " + _NO_APT)
    return found[1], found[2], found[3]


def _download(package: str, version: str, folder: Path, lock: int) -> Path:
    """Fetch one .deb into a folder; apt checks its hash against the signed index."""
    _apt(["apt-get", "download", "-q", f"{package}={version}"], "download kernel", folder, lock)
    files = list(folder.glob("*.deb"))
    if len(files) != 1:
        raise KernelError("download kernel", package, f"apt-get left {len(files)} packages",
                          "run `apt-get update` as root and try again")
    return files[0]


def _apt(command: list[str], step: str, folder: Path, *inherited: int) -> str:
    """Run an apt program in a folder and give its output; its last error line is the cause when it fails."""
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False,
                              stdin=subprocess.DEVNULL, timeout=APT_TIMEOUT_S, pass_fds=inherited)
    except FileNotFoundError as error:
        raise KernelError(step, META_PACKAGE, f"there is no {command[0]} here", _NO_APT) from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(step, META_PACKAGE, f"{command[0]} did not end within {APT_TIMEOUT_S} s",
                          "check apt's sources and the network") from error
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        cause = complaints[-1].removeprefix("E: ") if complaints else f"{command[0]} ended with {done.returncode}"
        raise KernelError(step, META_PACKAGE, cause,
                          "run `apt-get update` as root and check apt's sources; " + _NO_APT)
    return done.stdout


def _safe(version: str) -> str:
    """A Debian version as a file name: "1:2.3~rc1" has characters that do not fit everywhere."""
    return re.sub(r"[^\w.+-]", "_", version)


def _placed(release: str) -> Callable[[str], str | None]:
    """Where the files of the kernel package go in our cache; the rest (documentation, hooks) is left out."""
    fixed = {f"boot/vmlinuz-{release}": IMAGE, f"boot/config-{release}": CONFIG}
    tree = re.compile(rf"(?:usr/)?lib/modules/{re.escape(release)}/((?:[\w+.-]+/)*[\w+.-]+)")

    def place(name: str) -> str | None:
        within = tree.fullmatch(name)
        if within and ".." not in name.split("/"):
            return f"{MODULES}/{within[1]}"
        return fixed.get(name)

    return place


def _complete(made: Path, package: str) -> None:
    """Add what is derived: the module index and, where the kernel can be entered by PVH, the plain ELF kernel."""
    for needed in (IMAGE, CONFIG, f"{MODULES}/modules.builtin"):
        if not (made / needed).is_file():
            raise KernelError("unpack kernel", package, f"the package has no {needed}",
                              "report it: the package's layout has changed")
    index = kmod.scan(made / MODULES)
    if not index.modules:
        raise KernelError("unpack kernel", package, "the package has no uncompressed module",
                          "report it: the package's layout has changed")
    (made / MODULE_INDEX).write_text(kmod.dumps(index), encoding="utf-8")
    pvh = bzimage.pvh_kernel((made / IMAGE).read_bytes(), package)
    if pvh is not None:
        (made / PVH).write_bytes(pvh)


def wanted_modules(section: str) -> list[str]:
    """The names of a section ("boot", "demand") of initramfs/modules.list, "?" kept."""
    return kmod.parse_list(importlib.resources.files("initramfs").joinpath("modules.list").read_text("utf-8"))[section]


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
