"""The Python that runs as PID 1: which interpreter, which libraries, and only the modules that the agent imports.

It is Debian's own python3.11: built with PGO and LTO (20 to 25 % faster than a plain build), maintained, and there on
every host that can run us.  Alternatives measured and not taken: a static musl build (2 MB smaller, 12 % sooner at its
first line, but no ctypes and no C extensions), a zip of the library (50 % slower to the first line), Nuitka (4x).

Which modules: the interpreter itself is asked, by importing the agent and looking at sys.modules.  What it imports
before our first line travels as sourceless .pyc at the place of the source (the loader then stats nothing else), the
rest in two files that tether/init.py reads.  All is compiled with -OO in a process of its own with a fixed hash seed,
because marshal's output depends on what else lives in the process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from imagebuild.errors import InitramfsError

INTERPRETER = "usr/bin/python3.11"
LIBRARY = "usr/lib/python3.11"
LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64")
COMPILE_TIMEOUT_S = 120
AGENT = "tether"  # the package that it runs
OPTIONS = "-ISXutf8"  # -I: no environment, no user site; -S: no site.py; utf8: no search for a locale
INIT_MODULE = "init"  # of the agent: what runs first
INIT_COMPILED = f"{INIT_MODULE}.pyc"
# Words of a kernel command line: run /init.pyc.  They come last: what follows "--" is for the program.
START_WORDS = (f"rdinit=/{INTERPRETER}", "--", OPTIONS, f"/{INIT_COMPILED}")
START, LATE = "start.modules", "late.modules"  # what starting imports, and the rest (tether/init.py reads them)
LANDMARK = "os"  # by os.pyc, be it empty, the interpreter recognises its own library (getpath.py)
LEFT_OUT = ("_json",)  # a faster half of json, which does without it; a spec is read once
NEEDED_EARLY = ("encodings.ascii", "encodings.latin_1", "encodings.utf_8")  # codecs of last resort of the interpreter

_LIST_IMPORTS = """
import sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    try:
        __import__(name)
    except ModuleNotFoundError:
        parent, _, attribute = name.rpartition(".")
        if not hasattr(sys.modules.get(parent), attribute):
            raise
for name, module in sorted(sys.modules.items()):
    origin = getattr(module.__spec__, "origin", None)
    if name != "__main__" and origin not in ("built-in", "frozen", None):
        print(name, origin, sep="\\t")
"""

_COMPILE = """
import importlib.util, marshal, os, sys, zlib
start, late, packed = {}, {}, []
for line in sys.stdin:
    kind, source, name, target, module = line.rstrip("\\n").split("\\t")
    with open(source, "rb") as file:
        text = file.read()
    code = compile(text, name, "exec", dont_inherit=True, optimize=2)
    is_package = source.endswith("/__init__.py")
    if kind == "start":
        start[module] = (code, is_package)
        print(kind, module, len(marshal.dumps(code)), sep="\\t")
    elif kind == "late":
        packed.append(zlib.compress(marshal.dumps(code), 9))
        late[module] = (sum(map(len, packed[:-1])), len(packed[-1]), is_package)
        print(kind, module, len(packed[-1]), sep="\\t")
    else:
        unchecked = (1).to_bytes(4, "little")  # PEP 552: a hash that nobody compares with anything
        header = importlib.util.MAGIC_NUMBER + unchecked + importlib.util.source_hash(text)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(header + marshal.dumps(code))
with open(sys.argv[1], "wb") as file:
    file.write(marshal.dumps((start, late)))
with open(sys.argv[2], "wb") as file:
    file.write(b"".join(packed))
"""


class Runtime(NamedTuple):
    """An interpreter and its libraries, installed or unpacked below `root`."""

    root: Path

    @property
    def interpreter(self) -> Path:
        """The program."""
        return self.root / INTERPRETER

    def library_file(self, soname: str) -> Path:
        """The file of a shared library.  Raises InitramfsError if no folder has it."""
        for folder in LIBRARY_FOLDERS:
            path = self.root / folder / soname
            if path.exists():
                return path
        raise InitramfsError("find library", soname, f"none of {', '.join(LIBRARY_FOLDERS)} has it",
                             "install the package it is from")

    def fingerprint(self) -> str:
        """Changes when the interpreter is another one: part of the cache key."""
        facts = [f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}"
                 for path in (self.interpreter, self.root / LIBRARY / "os.py", self.library_file("libc.so.6"))]
        return " ".join(facts)


class Module(NamedTuple):
    """A module to take along: a Python source or an extension."""

    name: str
    file: Path

    @property
    def is_extension(self) -> bool:
        """True for a shared object."""
        return self.file.suffix == ".so"

    def target(self) -> str:
        """Where it goes below the library folder."""
        if self.is_extension:
            return f"lib-dynload/{self.file.name}"
        path = self.name.replace(".", "/")
        return f"{path}/__init__.pyc" if self.file.name == "__init__.py" else f"{path}.pyc"


class PythonModules(NamedTuple):
    """The Python modules to take along, by how they travel (extension modules are files anyway).

    `files`: one each, in the library's folder, for the interpreter itself; `start`: what starting imports; `late`:
    the rest.
    """

    files: list[Module]
    start: list[Module]
    late: list[Module]
    extensions: list[Module]


class Compiled(NamedTuple):
    """Python modules as code: each target below the library folder with its .pyc, and the contents of START and LATE
    with what each module takes of them, in bytes."""

    files: Mapping[str, bytes]
    start: bytes
    late: bytes
    start_sizes: Mapping[str, int]
    late_sizes: Mapping[str, int]


def find_runtime() -> Runtime:
    """The interpreter of this host.  Raises InitramfsError if it has none."""
    runtime = Runtime(Path("/"))
    if not runtime.interpreter.exists() or not (runtime.root / LIBRARY / "os.py").exists():
        raise InitramfsError("find Python", str(runtime.interpreter), "the agent needs Debian's python3.11",
                             "install the package python3.11")
    return runtime


def imported_modules(runtime: Runtime, source_root: Path, names: tuple[str, ...]) -> list[Module]:
    """Every module that comes in from a file when `names` are imported; `source_root` has the agent's package.

    A name with a dot may also be an attribute of a module that is among them.
    """
    command = [str(runtime.interpreter), "-I", "-S", "-c", _LIST_IMPORTS, str(source_root), *names]
    listed = run(command, "find the agent's imports", "")
    return [Module(name, Path(file)) for name, file in (line.split("\t") for line in listed.splitlines())]


def choose_modules(
    runtime: Runtime, source_root: Path, main: tuple[str, ...], every: list[Module], names: tuple[str, ...]
) -> PythonModules:
    """All that `main` imports to begin with, and later: `every` module of the agent, and what they name (`names`)."""
    own = imported_modules(runtime, source_root, NEEDED_EARLY)
    known = {module.name for module in own}
    first = [module for module in imported_modules(runtime, source_root, main) if module.name not in known]
    known |= {module.name for module in first}
    later = {module.name: module for module in (*imported_modules(runtime, source_root, names), *every)}
    rest = [later[name] for name in sorted(later) if name not in known]
    return PythonModules(
        files=own,
        start=[module for module in first if not module.is_extension],
        late=[module for module in rest if not module.is_extension],
        extensions=[module for module in (*first, *rest) if module.is_extension and module.name not in LEFT_OUT],
    )


def agent_modules(source_root: Path, package: str) -> list[Module]:
    """All modules of the agent's package, also those that it imports late."""
    return [Module(name, Path(path)) for name, path in agent_sources(source_root, package)]


def agent_sources(source_root: Path, package: str) -> list[tuple[str, str]]:
    """The same, as names and paths: every start of a machine asks, and making 80 Paths takes longer than looking."""
    found = []
    root = f"{source_root}/"
    for folder, _, files in os.walk(f"{root}{package}"):
        for file in files:
            if file.endswith(".py"):
                path = f"{folder}/{file}"
                name = path.removeprefix(root).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                found.append((name, path))
    return sorted(found)


def compile_modules(runtime: Runtime, modules: PythonModules, into: Path) -> Compiled:
    """Compiles them, in `into`, an empty folder."""
    into.mkdir(parents=True, exist_ok=True)
    kinds = (("file", modules.files), ("start", modules.start), ("late", modules.late))
    lines = [
        f"{kind}\t{module.file}\t{module.target().removesuffix('c')}\t{into / module.target()}\t{module.name}\n"
        for kind, group in kinds for module in group
    ]
    command = [str(runtime.interpreter), "-s", "-S", "-c", _COMPILE, str(into / START), str(into / LATE)]
    told = [line.split("\t") for line in run(command, "compile the agent", "".join(lines)).splitlines()]
    return Compiled(
        files={module.target(): (into / module.target()).read_bytes() for module in modules.files},
        start=(into / START).read_bytes(),
        late=(into / LATE).read_bytes(),
        start_sizes={name: int(size) for kind, name, size in told if kind == "start"},
        late_sizes={name: int(size) for kind, name, size in told if kind == "late"},
    )


def shared_objects(runtime: Runtime, modules: list[Module]) -> dict[str, Path]:
    """Path in the initramfs -> file, of the loader and all libraries of the interpreter and its extensions."""
    from imagebuild.boot.elf import Elf, libraries

    programs = [runtime.interpreter, *(module.file for module in modules if module.is_extension)]
    loader = Elf(runtime.interpreter).loader
    if loader is None:
        raise InitramfsError("read ELF file", str(runtime.interpreter), "it names no loader", "reinstall python3.11")
    found = {f"{LIBRARY_FOLDERS[0]}/{name}": path for name, path in libraries(programs, runtime.library_file).items()}
    found.pop(f"{LIBRARY_FOLDERS[0]}/{os.path.basename(loader)}", None)
    found[loader.lstrip("/")] = runtime.library_file(os.path.basename(loader))
    return found


def run(command: list[str], step: str, text: str) -> str:
    """Runs the interpreter with a fixed hash seed and nothing of the caller's environment; gives its output."""
    import subprocess

    done = subprocess.run(command, input=text, env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}, text=True,
                          capture_output=True, timeout=COMPILE_TIMEOUT_S, check=False)
    if done.returncode:
        cause = done.stderr.strip().splitlines()
        raise InitramfsError(step, command[0], cause[-1] if cause else f"it ended with {done.returncode}",
                             "reinstall the packages python3.11 and libpython3.11-stdlib")
    return done.stdout
