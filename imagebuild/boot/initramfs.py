"""The boot image: Python, the agent and the kernel's modules as one compressed cpio archive.

    /init                      Python, found by the kernel without any argument
    /init.pyc                  the same, compiled, for a kernel that is told to run it (START_WORDS)
    /start.modules             the modules that starting imports; removed when they are loaded
    /late.modules              the agent's other modules, and what they import, compressed (tether/init.py reads both)
    /usr/bin/python3.11        the interpreter, its loader and libraries in their usual places
    /usr/lib/python3.11/       what the interpreter itself imports, as .pyc, and modules that are libraries
    /lib/modules/load          names of the kernel modules beside it, in load order (absent if the kernel needs none)
    /lib/modules/demand        a line for each module that is loaded when asked for: its name, its files in load order

No root, no external program, and the same bytes for the same inputs.  Built once per content: the file's name is the
key of everything that goes in, this builder included.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import zstandard

from imagebuild.boot import cpio, runtime
from imagebuild.boot.elfstrip import without_unwinding
from imagebuild.boot.kernel import Kernel, boot_modules, demand_modules
from imagebuild.boot.kernel_cache import Progress, silent
from imagebuild.boot.modstrip import stripped
from imagebuild.boot.reasons import mentions
from imagebuild.errors import InitramfsError

AGENT = "tether"
START_MODULES = ("tether.__main__", "tether.link.transport_virtio")  # the usual link: imported late, and nearly always
ZSTD_LEVEL = 19  # 3 s once; decompression does not get slower, and a host keeps few of these files
KEPT = 8  # boot images in the cache: a few kernels, a few versions of the agent; each has 4 to 5 MB, plain 11 to 16
PACKED, PLAIN = ".cpio.zst", ".cpio"  # how files in the cache end
MODULE_FOLDER = "lib/modules"
MODULE_LIST = f"{MODULE_FOLDER}/load"
DEMAND_LIST = f"{MODULE_FOLDER}/demand"

# -I: no environment, no user site; -S: no site.py; utf8: no search for a locale.  The kernel passes the rest of the
# line as one argument, hence one word.
INIT_LINE = f"#!/{runtime.INTERPRETER} -ISXutf8\n"
INIT_MODULE = "init"
INIT_COMPILED = f"{INIT_MODULE}.pyc"
# Words of a kernel command line: run /init.pyc.  They come last: what follows "--" is for the program.
START_WORDS = (f"rdinit=/{runtime.INTERPRETER}", "--", "-ISXutf8", f"/{INIT_COMPILED}")

EMPTY_FOLDERS = ("dev", "proc", "sys", "run", "tmp")


@dataclass(frozen=True)
class Initramfs:
    """A boot image: `size` is compressed, `unpacked` what it takes of the guest's memory, in bytes."""

    path: Path
    key: str
    size: int
    unpacked: int


@dataclass(frozen=True)
class Part:
    """One entry, the file of the host that it is (or is compiled from), and the name it is imported by, if it is.

    `modules`: those in a file of several, with the bytes that each takes.
    """

    entry: cpio.Entry
    source: Path | None = None
    module: str = ""
    modules: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Modules:
    """Kernel modules to bring along: `load` at once, in this order; `demand` by name, each with what it depends on.

    What is loaded at once is not listed again, because the agent removes those files.
    """

    load: list[Path]
    demand: dict[str, list[Path]]

    def files(self) -> list[Path]:
        """Every file, once."""
        return list(dict.fromkeys((*self.load, *(path for paths in self.demand.values() for path in paths))))

    def lists(self) -> list[cpio.Entry]:
        """The two lists that the agent reads; none for a kernel without modules."""
        if not self.files():
            return []
        load = "".join(f"{path.name}\n" for path in self.load)
        later = {name: [path.name for path in paths if path not in self.load] for name, paths in self.demand.items()}
        demand = "".join(f"{' '.join((name, *files))}\n" for name, files in later.items())
        return [cpio.file(MODULE_LIST, load.encode()), cpio.file(DEMAND_LIST, demand.encode())]


def build_initramfs(
    kernel: Kernel, cache: Path, source_root: Path | None = None, progress: Progress = silent
) -> Initramfs:
    """The boot image for `kernel`, made if `cache` does not have it.

    `progress` is told if it has to be made.  `source_root` is the folder that has the agent's package (default: where
    this package is).  Raises InitramfsError, and KernelError for a kernel without its modules.
    """
    root = source_root or Path(__file__).resolve().parents[2]
    python = runtime.find_runtime()
    modules = Modules(boot_modules(kernel), demand_modules(kernel))
    key = _key(python, root, modules)
    folder = cache / "initramfs"
    path = folder / f"{key}{PACKED}"
    try:
        if not path.exists():
            progress(f"boot image for {kernel.name}: build")
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as scratch:
                made = Path(scratch, "image")
                made.write_bytes(_compressed(cpio.archive(entries(python, root, modules, Path(scratch, "compiled")))))
                os.replace(made, path)
            _forget_old(folder)
        unpacked = zstandard.frame_content_size(path.open("rb").read(64))
    except OSError as error:
        raise InitramfsError("build initramfs", str(path), error.strerror or str(error),
                             f"make room in {cache} (20 MB) and try again") from error
    return Initramfs(path, key, path.stat().st_size, unpacked)


def plain_image(image: Initramfs) -> Path:
    """The same archive without compression, made if the cache does not have it.

    For a hypervisor that reads it from a local file: copying 11 MB into the guest costs nothing, and decompressing them
    inside an emulated one is a sixth of all that a start costs.  Raises InitramfsError.
    """
    path = image.path.with_name(image.key + PLAIN)
    try:
        if not path.exists():
            with tempfile.TemporaryDirectory(prefix=".building-", dir=path.parent) as scratch:
                made = Path(scratch, "image")
                made.write_bytes(zstandard.ZstdDecompressor().decompress(image.path.read_bytes(), image.unpacked))
                os.replace(made, path)
    except (OSError, zstandard.ZstdError) as error:
        raise InitramfsError("unpack initramfs", str(image.path), getattr(error, "strerror", None) or str(error),
                             f"make room in {path.parent} (20 MB), delete {image.path.name} and try again") from error
    return path


def entries(python: runtime.Runtime, root: Path, modules: Modules, scratch: Path) -> list[cpio.Entry]:
    """What goes in.  `scratch` is a folder to compile in."""
    return [part.entry for part in parts(python, root, modules, scratch)]


def parts(python: runtime.Runtime, root: Path, modules: Modules, scratch: Path) -> list[Part]:
    """What goes in, with the host's file that each is from."""
    chosen = chosen_modules(python, root)
    first = runtime.Module(INIT_MODULE, init_source(root))
    compiled = runtime.compile_modules(python, replace(chosen, files=[*chosen.files, first]), scratch)
    return [
        Part(cpio.file("init", init_script(root), 0o755)),
        Part(cpio.file(INIT_COMPILED, compiled.files[first.target()])),
        Part(cpio.file(runtime.START, compiled.start), modules=compiled.start_sizes),
        Part(cpio.file(runtime.LATE, compiled.late), modules=compiled.late_sizes),
        Part(cpio.file(f"{runtime.LIBRARY}/{runtime.LANDMARK}.pyc", b""), module=runtime.LANDMARK),
        Part(cpio.character_device("dev/console", 5, 1)),  # the kernel opens it for PID 1 before anything is mounted
        _copied(runtime.INTERPRETER, python.interpreter, 0o755),
        *(Part(cpio.directory(path)) for path in EMPTY_FOLDERS),
        *(Part(cpio.file(f"{runtime.LIBRARY}/{item.target()}", compiled.files[item.target()]), item.file, item.name)
          for item in chosen.files),
        *(_copied(f"{runtime.LIBRARY}/{module.target()}", module.file, name=module.name)
          for module in chosen.extensions),
        *(_copied(name, path, 0o755) for name, path in runtime.shared_objects(python, chosen.extensions).items()),
        *(Part(cpio.file(f"{MODULE_FOLDER}/{path.name}", stripped(path.read_bytes())), path)
          for path in modules.files()),
        *(Part(entry) for entry in modules.lists()),
    ]


def chosen_modules(python: runtime.Runtime, root: Path) -> runtime.PythonModules:
    """The Python modules that go in, also what the agent imports inside functions.  `root` has the agent's package."""
    agent = runtime.agent_modules(root, AGENT)
    named = mentions({module.name: module.file.read_text(encoding="utf-8") for module in agent})
    others = tuple(name for name in named if name.partition(".")[0] != AGENT)
    late = [module for module in agent if module.file != init_source(root)]
    return runtime.choose_modules(python, root, START_MODULES, late, others)


def init_script(root: Path) -> bytes:
    """What /init is."""
    return INIT_LINE.encode() + init_source(root).read_bytes()


def init_source(root: Path) -> Path:
    """The file that it is made of."""
    return root / AGENT / f"{INIT_MODULE}.py"


def _copied(path: str, source: Path, mode: int = 0o644, name: str = "") -> Part:
    return Part(cpio.file(path, without_unwinding(source.read_bytes()), mode), source, name)


def _forget_old(folder: Path) -> None:
    """Removes what has not been made for long; whoever starts a VM with one of the newest still finds it."""
    images = sorted(folder.glob(f"*{PACKED}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in images[KEPT:]:
        path.unlink(missing_ok=True)
        path.with_name(path.name.removesuffix(PACKED) + PLAIN).unlink(missing_ok=True)


def _compressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=False, threads=0).compress(data)


def _key(python: runtime.Runtime, root: Path, modules: Modules) -> str:
    """A digest of all inputs: sources by content, what packages installed by name, size and time of change."""
    digest = hashlib.sha256(python.fingerprint().encode())
    builder = Path(__file__).resolve().parent
    ours = ("cpio.py", "elf.py", "elfstrip.py", "initramfs.py", "modstrip.py", "reasons.py", "runtime.py")
    for module in (*runtime.agent_modules(root, AGENT), *(runtime.Module(name, builder / name) for name in ours)):
        digest.update(f"\0{module.name}\0".encode())
        digest.update(module.file.read_bytes())
    digest.update(b"".join(entry.content for entry in modules.lists()))
    for path in modules.files():
        digest.update(f"\0{path.name}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:32]
