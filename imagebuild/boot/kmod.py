"""Kernel modules: which files a list of module names needs, in load order.

depmod's ``modules.dep`` does not exist before a kernel package is installed, so the names that a module depends on
come from its own ``.modinfo`` section ("depends=a,b", "softdep=pre: c"), and what is built in from
``modules.builtin``.  Source: the kernel's Documentation/kbuild/kbuild.rst and modinfo(8).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from imagebuild.errors import KernelError

INDEX_VERSION = 1
_ELF64_LE = b"\x7fELF\x02\x01"
_EHDR_BYTES = 64
_SHDR = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr: name type flags addr offset size link info align entsize
_RE_DOWNLOAD = "delete the kernel's folder in the cache and try again"


class Module(NamedTuple):
    """One loadable module: where its file is (relative to the module folder) and what must be loaded before it."""

    file: str
    size: int  # bytes; a cached file of another size is damaged
    depends: tuple[str, ...] = ()  # must be there
    before: tuple[str, ...] = ()  # softdep "pre": loaded before where they exist


class ModuleIndex(NamedTuple):
    """All modules of one kernel by canonical name, and the names that are built into it."""

    modules: Mapping[str, Module]
    builtin: frozenset[str]


def canonical(name: str) -> str:
    """The name the kernel uses: "-" and "_" are one character to it, and files end in .ko (and a compression)."""
    return PurePosixPath(name).name.split(".ko")[0].replace("-", "_")


def modinfo(elf: bytes, subject: str) -> dict[str, list[str]]:
    """The ``key=value`` strings of a module's .modinfo section; a key may stand several times."""
    values: dict[str, list[str]] = {}
    for item in _section(elf, b".modinfo", subject).split(b"\0"):
        key, equals, value = item.decode("utf-8", "replace").partition("=")
        if equals:
            values.setdefault(key, []).append(value)
    return values


def _section(elf: bytes, wanted: bytes, subject: str) -> bytes:
    """The content of a named section of a little-endian ELF64 file."""
    try:
        if not elf.startswith(_ELF64_LE):
            raise ValueError("it is not a 64-bit little-endian ELF file")
        table = struct.unpack_from("<Q", elf, 40)[0]
        entry, count, names_index = struct.unpack_from("<HHH", elf, 58)
        if entry != _SHDR.size:
            raise ValueError("its section headers have an unknown size")
        headers = [_SHDR.unpack_from(elf, table + entry * number) for number in range(count)]
        names_at = headers[names_index][4]
        for name, _type, _flags, _addr, offset, size, *_rest in headers:
            begin = names_at + name
            if elf[begin:begin + len(wanted) + 1] == wanted + b"\0":
                if offset + size > len(elf):
                    raise ValueError("it is cut short")
                return elf[offset:offset + size]
    except (struct.error, IndexError, ValueError) as error:
        raise KernelError("read kernel module", subject, str(error), _RE_DOWNLOAD) from error
    raise KernelError("read kernel module", subject, f"it has no {wanted.decode()} section", _RE_DOWNLOAD)


def describe(elf: bytes, file: str) -> Module:
    """What a module says of itself; ``file`` is where it will be found."""
    info = modinfo(elf, file)
    depends = [canonical(name) for value in info.get("depends", []) for name in value.split(",") if name]
    before = [canonical(name) for value in info.get("softdep", []) for name in _softdep_pre(value)]
    return Module(file, len(elf), tuple(depends), tuple(before))


def _softdep_pre(value: str) -> list[str]:
    """The "pre" names of one softdep line: "pre: a b post: c" gives a, b.  Names before any keyword are "pre"."""
    names: list[str] = []
    taking = True
    for word in value.split():
        if word.endswith(":"):
            taking = word == "pre:"
        elif taking:
            names.append(word)
    return names


def scan(folder: Path) -> ModuleIndex:
    """Read every module below a kernel's module folder (lib/modules/RELEASE).  About a second for 1,100 modules."""
    modules: dict[str, Module] = {}
    for path in sorted(folder.rglob("*.ko")):
        modules[canonical(path.name)] = describe(path.read_bytes(), path.relative_to(folder).as_posix())
    builtin = (folder / "modules.builtin").read_text(encoding="utf-8").split()
    return ModuleIndex(modules, frozenset(canonical(name) for name in builtin))


def closure(index: ModuleIndex, wanted: Iterable[str], subject: str = "kernel") -> list[Module]:
    """The modules to load for ``wanted``, each after what it depends on, none twice; built-in ones are left out.

    A name with a leading "?" is left out where the kernel does not have it.  Raises KernelError for a name that is
    neither a module nor built in, and for a circle.
    """
    ordered: dict[str, Module] = {}

    def visit(name: str, path: tuple[str, ...], needed: bool) -> None:
        if name in ordered or name in index.builtin:
            return
        if name in path:
            if not needed:
                return  # modprobe.d(5)'s softdep is a wish
            raise KernelError("order kernel modules", subject, "they depend in a circle: " +
                              " -> ".join((*path, name)), _RE_DOWNLOAD)
        module = index.modules.get(name)
        if module is None:
            if not needed:
                return
            reason = f"it has no module {name}" + (f" (needed by {path[-1]})" if path else "")
            raise KernelError("find kernel module", subject, reason,
                              'put "?" before the name if it can be done without, or use another kernel')
        for other in module.before:
            visit(other, (*path, name), needed=False)
        for other in module.depends:
            visit(other, (*path, name), needed=True)
        ordered[name] = module

    for name in wanted:
        visit(canonical(name.removeprefix("?")), (), needed=not name.startswith("?"))
    return list(ordered.values())


def parse_list(text: str) -> dict[str, list[str]]:
    """Section -> names, from a module list: "[section]" lines, one name a line, "#" begins a comment, "?" stays."""
    sections: dict[str, list[str]] = {}
    names: list[str] | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if line.startswith("[") and line.endswith("]"):
            names = sections.setdefault(line[1:-1], [])
        elif line and (names is None or len(line.split()) != 1):
            raise KernelError("read module list", f"line {number}", f"{line!r} is not one name below a [section]",
                              "see the head of initramfs/modules.list")
        elif line and names is not None:
            names.append(line)
    return sections


def dumps(index: ModuleIndex) -> str:
    """The index as JSON, the same text for the same modules."""
    modules = {name: [m.file, m.size, list(m.depends), list(m.before)] for name, m in sorted(index.modules.items())}
    return json.dumps({"version": INDEX_VERSION, "modules": modules, "builtin": sorted(index.builtin)}, indent=0)


def loads(text: str, subject: str) -> ModuleIndex:
    """The reverse of ``dumps``.  Raises KernelError when the text is of another version or damaged."""
    try:
        data = json.loads(text)
        if data["version"] != INDEX_VERSION:
            raise ValueError(f"version {data['version']} is not {INDEX_VERSION}")
        modules = {name: Module(file, size, tuple(depends), tuple(before))
                   for name, (file, size, depends, before) in data["modules"].items()}
        return ModuleIndex(modules, frozenset(data["builtin"]))
    except (ValueError, KeyError, TypeError) as error:
        raise KernelError("read module index", subject, f"it is damaged: {error}", _RE_DOWNLOAD) from error
