"""How the pico kernel is made: built from Debian's linux-source package with the fragment initramfs/pico.config.

    make pico        (python -m imagebuild.boot.pico_build)

One build takes about 25 CPU minutes and is kept by content (kernel_cache): the set lines of the fragment, the source
tarball and this recipe.  The result does not depend on when, where or by whom it was built.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from imagebuild.boot import bzimage, kernel_cache, kernel_edits
from imagebuild.boot.kernel_cache import CONFIG, IMAGE, PVH, Kernel, Progress, parse_config, silent
from imagebuild.boot.pico import KIND, fragment_key, fragment_text
from imagebuild.errors import KernelError
from imagebuild.home import home

SOURCES = Path("/usr/src")  # where Debian's linux-source packages put their tarballs
TESTED_SOURCE = "6.1"  # Debian 12's; the fragment is checked against it
SCRATCH_BYTES = 2 << 30  # 1.3 GB of source, 0.3 GB of objects, the result
MAX_IMAGE_BYTES = 6 << 20  # the promise of docs/kernel.md
NICENESS = "10"  # a build in the background leaves the machine usable

BUILD_ENV = {  # what would differ between two builds of the same thing
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "pico",
    "KBUILD_BUILD_HOST": "pico",
    "KBUILD_BUILD_VERSION": "1",
    "LC_ALL": "C",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}

PROGRAMS = {"gcc": "gcc", "make": "make", "ld": "binutils", "flex": "flex", "bison": "bison", "bc": "bc",
            "lz4": "lz4", "xz": "xz-utils", "perl": "perl"}
HEADERS = {"gelf.h": "libelf-dev", "openssl/evp.h": "libssl-dev", "stdio.h": "libc6-dev"}

OTHER_VERSIONS = {
    "CONFIG_MITIGATION_PAGE_TABLE_ISOLATION": "name since 6.9 of PAGE_TABLE_ISOLATION",
    "CONFIG_PAGE_TABLE_ISOLATION": "name before 6.9 of MITIGATION_PAGE_TABLE_ISOLATION",
    "CONFIG_MITIGATION_IBRS_ENTRY": "name since 6.9 of CPU_IBRS_ENTRY",
    "CONFIG_CPU_IBRS_ENTRY": "name before 6.9 of MITIGATION_IBRS_ENTRY",
    "CONFIG_SQUASHFS_COMPILE_DECOMP_MULTI_PERCPU": "since 6.2: selects what SQUASHFS_DECOMP_MULTI_PERCPU chose",
}
"""Lines of the fragment that may be unknown to the source at hand, with the reason.  A name that the source knows
and has set otherwise is an error all the same."""


def build_pico(cache: Path, *, sources: Path = SOURCES, jobs: int | None = None,
               progress: Progress = silent) -> Kernel:
    """The pico kernel for the current fragment and source; built unless the cache has it.

    ``jobs``: parallel compilers (default: the CPUs we may use).  Raises KernelError: no compiler, no source, a
    fragment line that did not survive, a failed build (with the log's name), no room.
    """
    if platform.machine() != "x86_64":
        raise KernelError("build kernel", KIND, f"this host is {platform.machine()}", "build it on an x86-64 host")
    tarball = find_source(sources)
    _require_tools()
    fragment = fragment_text()
    digest = _file_digest(tarball)
    name = f"{KIND}-{hashlib.sha256((fragment_key(fragment) + digest).encode()).hexdigest()[:12]}"
    folder = kernel_cache.kernels_folder(cache)
    log = folder / f"{KIND}-build.log"
    with kernel_cache.making(cache, KIND, progress) as (scratch, lock):
        done = kernel_cache.load(folder / name)
        if done is not None:
            kernel_cache.point_to(cache, name, KIND)
            return done[0]
        try:
            _require_room(scratch)
            run = _Runner(log, lock)
            tree = _unpack(tarball, scratch, run, progress)
            edit_source(tree, tarball, progress)
            _configure(tree, fragment, run, progress)
            count = jobs or len(os.sched_getaffinity(0))
            progress(f"{KIND} kernel: compile, {count} jobs (log: {log})")
            run(["make", f"-j{count}", "bzImage", "vmlinux"], tree)
            release = run(["make", "-s", "kernelrelease"], tree).strip()
            made = _collect(tree, scratch / "made")
            record = {"name": KIND, "release": release, "fragment": fragment_key(fragment),
                      "source": tarball.name, "source_sha256": digest, "compile_s": f"{run.seconds:.0f}",
                      "image_sha256": _file_digest(made / IMAGE)}
            return kernel_cache.install(cache, made, name, KIND, record)
        except OSError as error:
            raise KernelError("build kernel", error.filename or KIND, error.strerror or str(error),
                              f"make room in {cache} (2 GB while building) and try again") from error


def find_source(sources: Path = SOURCES) -> Path:
    """The kernel source tarball of Debian's linux-source package: the tested version, else the newest."""
    found = sorted(sources.glob("linux-source-*.tar.xz"), key=_version_of)
    tested = [path for path in found if path.name == f"linux-source-{TESTED_SOURCE}.tar.xz"]
    if not found:
        raise KernelError("build kernel", KIND, f"there is no linux-source tarball in {sources}",
                          f"run as root: apt-get install linux-source-{TESTED_SOURCE}")
    return (tested or found)[-1]


def _version_of(tarball: Path) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", tarball.name)]


def missing_packages(path: str | None = None, include: Path = Path("/usr/include")) -> list[str]:
    """The Debian packages to install before a build, by what is not there."""
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program, path=path) is None}
    multiarch = include / "x86_64-linux-gnu"
    missing |= {package for header, package in HEADERS.items()
                if not (include / header).exists() and not (multiarch / header).exists()}
    return sorted(missing)


def _require_tools() -> None:
    missing = missing_packages(BUILD_ENV["PATH"])
    if missing:
        raise KernelError("build kernel", KIND, "tools of a kernel build are missing",
                          f"run as root: apt-get install {' '.join(missing)}")


def _require_room(scratch: Path) -> None:
    free = shutil.disk_usage(scratch).free
    if free < SCRATCH_BYTES:
        raise KernelError("build kernel", str(scratch.parent), f"{free >> 20} MiB are free, {SCRATCH_BYTES >> 20} "
                          "are needed while building", "make room there or choose another cache folder")


def unmet(fragment: str, config: str) -> list[str]:
    """The fragment's lines that did not become true, each as "NAME: wanted, got"; a missing name counts as "n"."""
    got = parse_config(config)
    return [f"{name}: {value} wanted, {got.get(name, 'n')} got"
            for name, value in parse_config(fragment).items()
            if got.get(name, "n") != value and not (name in OTHER_VERSIONS and name not in got)]


class _Runner:
    """Runs the steps of a build with a clean environment, into one log."""

    def __init__(self, log: Path, lock: int) -> None:
        self._log, self._lock = log, lock
        self._begin = time.monotonic()
        log.write_bytes(b"")

    @property
    def seconds(self) -> float:
        """Since the first step."""
        return time.monotonic() - self._begin

    def __call__(self, command: list[str], folder: Path, **env: str) -> str:
        """The output of a command.  Raises KernelError with the line that says why it failed."""
        with self._log.open("ab+") as log:
            start = log.seek(0, os.SEEK_END)
            done = subprocess.run(["nice", "-n", NICENESS, *command], cwd=folder, env=BUILD_ENV | env, check=False,
                                  stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                  pass_fds=(self._lock,))
            log.seek(start)
            text = log.read().decode("utf-8", "replace")
        if done.returncode:
            raise KernelError("build kernel", " ".join(command[:2]), _complaint(text, done.returncode),
                              f"the whole log is {self._log}")
        return text


_COMPLAINT = re.compile(r"error:|: not found|No such file|No space left|undefined reference|[Cc]annot |Killed")


def _complaint(text: str, status: int) -> str:
    """The first line of a build's output that says what went wrong, or its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line for line in lines if _COMPLAINT.search(line)), lines[-1] if lines else "it said nothing")
    return f"it ended with {status}: {said}"


def _unpack(tarball: Path, scratch: Path, run: _Runner, progress: Progress) -> Path:
    progress(f"{KIND} kernel: unpack {tarball.name}")
    tree = scratch / "linux"
    tree.mkdir()
    run(["tar", "-xf", str(tarball), "--strip-components=1", "--no-same-owner"], tree)
    return tree


def edit_source(tree: Path, tarball: Path, progress: Progress) -> None:
    """Another version than the tested one is built as it is where an edit does not fit: it only takes more memory."""
    homeless = kernel_edits.apply(tree)
    if homeless and _version_of(tarball) == _version_of(Path(TESTED_SOURCE)):
        raise KernelError("edit kernel source", homeless[0].files[0], f"{homeless[0].old!r} is not in it",
                          "look what the source has in its place, and correct imagebuild/boot/kernel_edits.py")
    for edit in homeless:
        progress(f"{KIND} kernel: left as it is: {', '.join(edit.files)} (what is not saved: {edit.why})")


def _configure(tree: Path, fragment: str, run: _Runner, progress: Progress) -> None:
    """allnoconfig with our lines, in one step: merging afterwards would let symbols that become visible later take
    their default y (measured: 957 symbols instead of 736)."""
    progress(f"{KIND} kernel: configure")
    wanted = tree.parent / "fragment"
    wanted.write_text(fragment, encoding="utf-8")
    run(["make", "-s", "allnoconfig"], tree, KCONFIG_ALLCONFIG=str(wanted))
    lost = unmet(fragment, (tree / ".config").read_text(encoding="utf-8"))
    if lost:
        raise KernelError("configure kernel", "initramfs/pico.config", f"{len(lost)} lines did not survive: "
                          + "; ".join(lost[:8]), "correct the fragment (a dependency is missing, or a name changed); "
                          "a name of another kernel version goes into OTHER_VERSIONS of imagebuild/boot/pico_build.py")


def _collect(tree: Path, made: Path) -> Path:
    """What is kept of a build."""
    made.mkdir()
    built = tree / "arch/x86/boot/bzImage"
    image = built.read_bytes()
    if len(image) > MAX_IMAGE_BYTES:
        raise KernelError("build kernel", KIND, f"the image has {len(image)} bytes, more than {MAX_IMAGE_BYTES}",
                          "take something out of initramfs/pico.config")
    pvh = bzimage.pvh_kernel(image, KIND)
    if pvh is None:
        raise KernelError("build kernel", KIND, "the kernel has no PVH entry", "CONFIG_PVH belongs into the fragment")
    (made / IMAGE).write_bytes(image)
    (made / PVH).write_bytes(pvh)
    shutil.copyfile(tree / ".config", made / CONFIG)
    shutil.copyfile(tree / "System.map", made / "System.map")  # no KALLSYMS, no KASLR: it explains a panic's addresses
    return made


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """``make pico``: build it into the state folder, one line a phase, and say what came out."""
    try:
        kernel = build_pico(home(), progress=lambda phase: print(phase, file=sys.stderr, flush=True))
    except KernelError as error:
        print(f"pico: {error}", file=sys.stderr)
        return 1
    size = kernel.image.stat().st_size
    print(f"{kernel.release}: {size / 1e6:.2f} MB, {kernel.image}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
