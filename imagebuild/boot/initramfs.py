"""What the boot image consists of: Python, the agent and the kernel's modules as one compressed cpio archive.

    /init                      Python, found by the kernel without any argument
    /init.pyc                  the same, compiled, for a kernel that is told to run it (runtime.START_WORDS)
    /start.modules             the modules that starting imports; removed when they are loaded
    /late.modules              the agent's other modules, and what they import, compressed (tether/init.py reads both)
    /usr/bin/python3.11        the interpreter, its loader and libraries in their usual places
    /usr/lib/python3.11/       what the interpreter itself imports, as .pyc, and modules that are libraries
    /lib/modules/load          names of the kernel modules beside it, in load order (absent if the kernel needs none)
    /lib/modules/demand        a line for each module that is loaded when asked for: its name, its files in load order

No root, no external program, and the same bytes for the same inputs.  boot_image.py keeps what is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from imagebuild.boot import cpio, runtime
from imagebuild.boot.elfstrip import without_unwinding
from imagebuild.boot.kernel import MODULE_FOLDER, Modules
from imagebuild.boot.modstrip import stripped
from imagebuild.boot.reasons import mentions
from imagebuild.boot.runtime import AGENT, INIT_COMPILED, INIT_MODULE

START_MODULES = ("tether.__main__", "tether.link.transport_virtio")  # the usual link: imported late, and nearly always
ZSTD_LEVEL = 19  # 3 s once; decompression does not get slower, and a host keeps few of these files

# The kernel passes the rest of the line as one argument, hence one word.
INIT_LINE = f"#!/{runtime.INTERPRETER} {runtime.OPTIONS}\n"

EMPTY_FOLDERS = ("dev", "proc", "sys", "run", "tmp")


@dataclass(frozen=True)
class Part:
    """One entry, the file of the host that it is (or is compiled from), and the name it is imported by, if it is.

    `modules`: those in a file of several, with the bytes that each takes.
    """

    entry: cpio.Entry
    source: Path | None = None
    module: str = ""
    modules: Mapping[str, int] = field(default_factory=dict)


def build(python: runtime.Runtime, root: Path, modules: Modules, scratch: Path) -> bytes:
    """The whole of it, compressed.  `scratch` is a folder to compile in."""
    return compressed(cpio.archive(entries(python, root, modules, scratch)))


def unpacked_size(file: Path) -> int:
    """What such a file is when it is unpacked, in bytes."""
    with file.open("rb") as opened:
        return zstandard.frame_content_size(opened.read(64))


def unpack(file: Path) -> bytes:
    """The archive in such a file.  Raises ValueError if it is damaged."""
    try:
        return zstandard.ZstdDecompressor().decompress(file.read_bytes())
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def entries(python: runtime.Runtime, root: Path, modules: Modules, scratch: Path) -> list[cpio.Entry]:
    """What goes in.  `scratch` is a folder to compile in."""
    return [part.entry for part in parts(python, root, modules, scratch)]


def parts(python: runtime.Runtime, root: Path, modules: Modules, scratch: Path) -> list[Part]:
    """What goes in, with the host's file that each is from."""
    chosen = chosen_modules(python, root)
    first = runtime.Module(INIT_MODULE, init_source(root))
    compiled = runtime.compile_modules(python, chosen._replace(files=[*chosen.files, first]), scratch)
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
        *(Part(cpio.file(path, content)) for path, content in modules.lists().items()),
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


def compressed(archive: bytes) -> bytes:
    """As it is kept."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=False, threads=0).compress(archive)
