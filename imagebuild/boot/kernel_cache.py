"""Where kernels are kept: one folder a kernel, named by its content, complete or absent.

    kernels/
      pico-6.1.192-1a2b3c4d5e6f/     kernel.json vmlinuz vmlinux config System.map
      debian-cloud-6.1.192-2/        kernel.json vmlinuz vmlinux config modules/ modules.json
      pico -> pico-6.1.192-...       the newest of each kind: found without asking anybody
      .pico.lock .pico-new-XXXX/     held and filled by the one process that makes it

A folder gets its name by rename(2) once all its files are on the disk, so that KILL or a power cut at any moment
leaves either nothing or a whole kernel.  What a killed process left is removed by the next one that holds the lock.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from imagebuild.errors import KernelError
from imagebuild.locks import locked

Progress = Callable[[str], None]
"""Is told each phase in a few words."""

RECORD = "kernel.json"
IMAGE, PVH, CONFIG, MODULES = "vmlinuz", "vmlinux", "config", "modules"


def silent(_phase: str) -> None:
    """The Progress of a caller that does not want to know."""


class Kernel(NamedTuple):
    """A kernel that can be booted."""

    name: str
    """"pico" or "debian-cloud"."""
    release: str
    """What ``uname -r`` says in the guest."""
    image: Path
    """bzImage: what firmware, ISO loaders and ``-kernel`` take."""
    pvh: Path | None
    """The plain ELF kernel with a PVH entry, which QEMU enters without a decompressor; None: boot ``image``."""
    config: Path
    """The configuration it was built with."""
    modules: Path | None
    """The module folder (what becomes lib/modules/RELEASE); None: everything is built in."""

    def option(self, name: str) -> str:
        """"y", "m", a value, or "n" where it is not set.  ``name`` with or without "CONFIG_"."""
        return options_of(self.config).get("CONFIG_" + name.removeprefix("CONFIG_"), "n")


@functools.cache
def options_of(config: Path) -> dict[str, str]:
    """The set lines of a kernel configuration file."""
    return parse_config(config.read_text(encoding="utf-8"))


def parse_config(text: str) -> dict[str, str]:
    """NAME -> value of each "NAME=value" and "# NAME is not set" ("n") line."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.startswith("CONFIG_"):
            values[name] = value
        elif line.startswith("# CONFIG_") and line.endswith(" is not set"):
            values[line.split()[1]] = "n"
    return values


def data_file(name: str) -> Path:
    """A file of the folder initramfs/, from a checkout or an installed package."""
    return Path(__file__).resolve().parents[2] / "initramfs" / name


def kernels_folder(cache: Path) -> Path:
    """The folder of all kernels, made if needed."""
    folder = cache / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KernelError("open kernel cache", str(folder), error.strerror or str(error),
                          "make the folder writable or choose another one") from error
    return folder


def load(folder: Path) -> tuple[Kernel, dict[str, str]] | None:
    """The kernel of a cache folder and what else was recorded about it; None if there is no (whole) kernel."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        facts = {str(key): str(value) for key, value in record.items()}
        folder = folder.resolve()
        kernel = Kernel(facts["name"], facts["release"], folder / IMAGE,
                        folder / PVH if (folder / PVH).is_file() else None, folder / CONFIG,
                        folder / MODULES if (folder / MODULES).is_dir() else None)
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return (kernel, facts) if kernel.image.is_file() and kernel.config.is_file() else None


def newest(cache: Path, kind: str) -> tuple[Kernel, dict[str, str]] | None:
    """The kernel of this kind that was installed last.  Costs two file reads: every VM start may call it."""
    return load(cache / "kernels" / kind)


@contextmanager
def making(cache: Path, kind: str, progress: Progress) -> Iterator[tuple[Path, int]]:
    """Be the only process that makes a kernel of this kind; gives an empty folder on the cache's disk.

    The second value is the lock's descriptor: a child that inherits it keeps the lock until it ends too, so that an
    orphaned compiler and a new build never share a folder.  Whatever is in the folder afterwards is removed.
    """
    import shutil
    import tempfile

    folder = kernels_folder(cache)
    say_once = functools.cache(lambda: progress(f"{kind} kernel: wait for another process that makes it"))
    with locked(folder / f".{kind}.lock", waiting=say_once) as lock:
        for left in folder.glob(f".{kind}-new-*"):
            shutil.rmtree(left, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{kind}-new-", dir=folder))
        try:
            yield scratch, lock
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def install(cache: Path, made: Path, name: str, kind: str, record: dict[str, str]) -> Kernel:
    """Give a finished folder its name, and make it the newest of its kind."""
    (made / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for path in (*made.rglob("*"), made):
        _sync(path)
    folder = kernels_folder(cache)
    target = folder / name
    if target.exists():  # damaged, or we would not have been asked to make it
        import shutil

        shutil.rmtree(target)
    made.chmod(0o755)  # mkdtemp's 0700 was for the scratch
    made.rename(target)
    point_to(cache, name, kind)
    _sync(folder)
    loaded = load(target)
    if loaded is None:
        raise KernelError("install kernel", str(target), "it is not complete", "delete the folder and try again")
    return loaded[0]


def point_to(cache: Path, name: str, kind: str) -> None:
    """Make ``name`` the newest of its kind."""
    folder = kernels_folder(cache)
    link = folder / f".{kind}-link-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    link.replace(folder / kind)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
