"""What is in a boot image, file by file: size, digest, group, reason, and where it comes from on this host."""

from __future__ import annotations

import hashlib
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import zstandard

from imagebuild.boot import cpio, initramfs, reasons, runtime
from imagebuild.boot.boot_image import Initramfs, build_initramfs
from imagebuild.boot.initramfs import Part
from imagebuild.boot.kernel import MODULE_FOLDER, Modules, carried_modules
from imagebuild.boot.kernel_cache import Kernel
from imagebuild.errors import InitramfsError

AGENT_GROUP, LIBRARY_GROUP, RUNTIME_GROUP, DRIVER_GROUP = "agent", "library", "interpreter", "kernel modules"

_WHY = {
    "init": "the kernel runs it as PID 1",
    runtime.INIT_COMPILED: "the same, compiled, where the kernel is told of it",
    runtime.START: "what starting imports; removed when it is loaded",
    runtime.LATE: "what is imported later, if ever, compressed",
}


@dataclass(frozen=True)
class Item:
    """One file of the image.  `size` in bytes, not compressed; `source` is None for what is made on the spot."""

    name: str
    size: int
    sha256: str
    group: str
    why: str
    source: Path | None


@dataclass(frozen=True)
class PythonModule:
    """One of several Python modules in a file of the image, with the bytes it takes there."""

    name: str
    size: int
    file: str
    why: str


@dataclass(frozen=True)
class Inventory:
    """A boot image with its files, in the order of their paths, and the modules in those that hold several."""

    image: Initramfs
    kernel: Kernel
    items: tuple[Item, ...]
    modules: tuple[PythonModule, ...]

    def totals(self) -> dict[str, int]:
        """Group -> bytes, the largest first."""
        sums: dict[str, int] = {}
        for item in self.items:
            sums[item.group] = sums.get(item.group, 0) + item.size
        return dict(sorted(sums.items(), key=lambda pair: -pair[1]))


def take_inventory(kernel: Kernel, cache: Path, source_root: Path | None = None) -> Inventory:
    """The boot image for `kernel`, built if need be, and what is in it.

    Raises InitramfsError, also if the image in the cache is not made of what is listed; KernelError.
    """
    root = source_root or Path(__file__).resolve().parents[2]
    image = build_initramfs(kernel, cache, root)
    python = runtime.find_runtime()
    modules = carried_modules(kernel)
    with tempfile.TemporaryDirectory(prefix="vch-inventory-") as scratch:
        found = initramfs.parts(python, root, modules, Path(scratch))
    packed = cpio.archive(part.entry for part in found)
    if zstandard.ZstdDecompressor().decompress(image.path.read_bytes(), len(packed)) != packed:
        raise InitramfsError("take inventory", str(image.path), "it is not made of the files that are here now",
                             "delete it and try again")
    importers = _importers(python, root)
    return Inventory(image, kernel, tuple(items(found, modules, importers)), tuple(_modules(found, importers)))


@dataclass(frozen=True)
class _Importers:
    """Module -> who imports it first, as of `reasons.importers`, and who mentions it, as of `reasons.mentions`."""

    first: Mapping[str, str]
    mentioned: Mapping[str, list[str]]

    def why(self, name: str) -> str:
        return reasons.module_reason(name, self.first, self.mentioned)


def _importers(python: runtime.Runtime, root: Path) -> _Importers:
    agent = runtime.agent_modules(root, runtime.AGENT)
    mentioned = reasons.mentions({module.name: module.file.read_text(encoding="utf-8") for module in agent})
    late = [module.name for module in initramfs.chosen_modules(python, root).late if module.name in mentioned]
    return _Importers(reasons.importers(python, root, (*initramfs.START_MODULES, *late)), mentioned)


def _modules(found: list[Part], importers: _Importers) -> list[PythonModule]:
    return [PythonModule(name, size, part.entry.path, importers.why(name))
            for part in found for name, size in part.modules.items()]


def items(found: list[Part], modules: Modules, importers: _Importers) -> list[Item]:
    """The files among `found`, with their reasons."""
    binaries = [part.source for part in found if part.source and _is_binary(part)]
    users = reasons.library_reasons(binaries)
    drivers = reasons.driver_reasons(modules)
    files = [part for part in found if stat.S_ISREG(part.entry.mode)]
    return [_item(part, importers, users, drivers) for part in sorted(files, key=lambda part: part.entry.path)]


def _is_binary(part: Part) -> bool:
    path = part.entry.path
    return path == runtime.INTERPRETER or ".so" in Path(path).name


def _item(part: Part, importers: _Importers, users: Mapping[str, list[str]], drivers: Mapping[str, str]) -> Item:
    path, name = part.entry.path, Path(part.entry.path).name
    if part.module:
        ours = part.module.partition(".")[0] == runtime.AGENT
        group, why = AGENT_GROUP if ours else LIBRARY_GROUP, importers.why(part.module)
        if part.module == runtime.LANDMARK:
            why = "by this file the interpreter recognises its library"
    elif path.startswith(MODULE_FOLDER):
        group, why = DRIVER_GROUP, drivers.get(name, "which modules to load, for the agent")
    elif path == runtime.INTERPRETER:
        group, why = RUNTIME_GROUP, "runs /init"
    elif path in _WHY:
        group, why = AGENT_GROUP, _WHY[path]
    else:
        group, why = RUNTIME_GROUP, f"needed by {', '.join(users.get(name, ['every program, as its loader']))}"
    content = part.entry.content
    return Item(path, len(content), hashlib.sha256(content).hexdigest(), group, why, part.source)
