"""Fetching Debian's cloud kernel: downloaded with apt-get, unpacked into the cache, never installed."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from imagebuild.boot import bzimage, kernel_cache, kmod
from imagebuild.boot.deb import unpack_deb
from imagebuild.boot.kernel import DEBIAN, MODULE_INDEX
from imagebuild.boot.kernel_cache import CONFIG, IMAGE, MODULES, PVH, Kernel, Progress
from imagebuild.errors import KernelError

META_PACKAGE = "linux-image-cloud-amd64"
_PACKAGE = re.compile(r"\b(linux-image-([0-9][\w.+~-]*-cloud-amd64)) \(= ([\w.+~:-]+)\)")
APT_TIMEOUT_S = 900  # 26 MB at 30 kB/s; apt-get itself gives up on a silent server long before

_NO_APT = "run it on Debian 12, or build the pico kernel (make pico)"


def fetch(cache: Path, progress: Progress) -> Kernel:
    """The newest one that apt knows; downloaded unless the cache has it.  Raises KernelError."""
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
