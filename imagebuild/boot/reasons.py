"""Why a file is in the boot image: who imports a module, which program loads a library, what wants a kernel module.

The interpreter itself is asked for imports: a finder in front of all others sees who imports each module first.  What
the agent imports later is found in its source.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from imagebuild.boot import runtime
from imagebuild.boot.elf import Elf

if TYPE_CHECKING:
    from imagebuild.boot.kernel import Modules

AT_START = "the interpreter, before its first line"
INIT_RUNS = ("tether", "tether.__main__")

_TRACE_IMPORTS = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
class Finder:
    seen = {}
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while frame.f_globals.get("__name__", "").startswith("importlib.") or "<frozen importlib" in \
                frame.f_code.co_filename:
            frame = frame.f_back
        self.seen.setdefault(name, frame.f_globals.get("__name__", ""))
        return None
sys.meta_path.insert(0, Finder())
for name in sys.argv[2:]:
    __import__(name)
for name in sorted(before):
    print(name)
for name, importer in sorted(Finder.seen.items()):
    print(name, importer, sep="\\t")
"""


def importers(python: runtime.Runtime, root: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Module -> who imports it first, when `names` are imported in this order; "" for what is asked for by name."""
    command = [str(python.interpreter), "-I", "-S", "-Xutf8", "-c", _TRACE_IMPORTS, str(root), *names]
    first: dict[str, str] = {}
    for line in runtime.run(command, "find the agent's imports", "").splitlines():
        name, tab, importer = line.partition("\t")
        first[name] = AT_START if not tab else "" if importer == "__main__" else importer
    return first


def mentions(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Module -> those of `sources` (name -> text) that import it, in a function or not, but not for types only."""
    found: dict[str, list[str]] = {}
    for importer, text in sorted(sources.items()):
        for name in sorted(_imports(ast.parse(text))):
            found.setdefault(name, []).append(importer)
    return found


def _imports(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            names |= _imports(ast.Module(node.orelse, []))
        else:
            names |= _imports(node)
    return names


def module_reason(name: str, first: Mapping[str, str], mentioned: Mapping[str, list[str]]) -> str:
    """One sentence for a Python module; `first` as of `importers`, `mentioned` as of `mentions`."""
    if first.get(name) == AT_START:
        return AT_START
    if first.get(name):
        return f"imported by {first[name]}"
    if name in runtime.NEEDED_EARLY:
        return "a codec that the interpreter falls back to"
    if name in INIT_RUNS:
        return "what /init runs"
    if name in mentioned:
        return f"imported when needed by {', '.join(mentioned[name])}"
    return "part of the agent"


def library_reasons(programs: Iterable[Path]) -> dict[str, list[str]]:
    """soname -> names of the files among `programs` (libraries too) that load it."""
    users: dict[str, list[str]] = {}
    for path in programs:
        for soname in Elf(path).needed:
            users.setdefault(soname, []).append(path.name)
    return {soname: sorted(set(names)) for soname, names in users.items()}


def driver_reasons(modules: Modules) -> dict[str, str]:
    """File name of a kernel module -> why it is carried along."""
    reasons = {path.name: "loaded at boot" for path in modules.load}
    for name, paths in modules.demand.items():
        for path in paths:
            reasons.setdefault(path.name, f"loaded when {name} is asked for")
    return reasons
