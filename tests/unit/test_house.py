"""Who may import whom (docs/architecture.md, "The house").  Read from the sources, so that late imports count too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("tether", "imagebuild", "initramfs", "vch")
GUEST_LIBRARIES = {"psutil", "pyinotify"}
OF_THE_LINK = ("tether.link", "tether.spec")
SHARED_WITH_THE_HOST = (*OF_THE_LINK, "tether.archive")


def _sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _checked_only(node: ast.AST) -> bool:
    """True for the body of `if TYPE_CHECKING:`, which nobody executes."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _checked_only(child):
            for other in child.orelse:
                yield other
                yield from _executed(other)
            continue
        yield child
        yield from _executed(child)


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in _executed(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[:-1]
            base = ".".join((*package[:len(package) - node.level + 1], *filter(None, [node.module]))) \
                if node.level else str(node.module)
            names |= {f"{base}.{alias.name}" if base in OURS else base for alias in node.names}
    return names


def _top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("path", _sources("tether"), ids=str)
def test_the_agent_imports_the_standard_library_and_itself(path: Path) -> None:
    foreign = {_top(name) for name in _imports(path)} - {"tether"} - GUEST_LIBRARIES - set(sys.stdlib_module_names)
    assert not foreign


# Which folders of the agent those of each may import; what is at the top commands them all.
FOLDERS = {
    "archive": {"kernel", "link"},
    "kernel": {"link"},
    "net": {"kernel", "link"},
    "process": {"kernel", "link", "rootfs"},
    "requests": {"archive", "kernel", "link", "net", "process", "rootfs"},
    "rootfs": {"kernel", "link", "net", "sources"},  # names of the network in /etc; a disk that the boot medium brings
    "sources": {"kernel", "link", "rootfs"},
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_agents_folders_are_in_layers(folder: str) -> None:
    used = {name.split(".")[1] for path in _sources(f"tether/{folder}") for name in _imports(path)
            if name.startswith("tether.")}
    assert (used & {"link", *FOLDERS}) - {folder} <= FOLDERS[folder]


@pytest.mark.parametrize("path", _sources("tether/link"), ids=str)
def test_the_link_needs_nothing_of_the_agent(path: Path) -> None:
    ours = {name for name in _imports(path) if _top(name) in OURS}
    assert all(name.startswith(OF_THE_LINK) for name in ours)


@pytest.mark.parametrize("path", _sources("imagebuild") + _sources("initramfs"), ids=str)
def test_image_building_knows_nothing_of_machines(path: Path) -> None:
    assert not {_top(name) for name in _imports(path)} & {"tether", "vch"}


@pytest.mark.parametrize("path", _sources("vch/qemu"), ids=str)
def test_the_hypervisor_is_below_machines(path: Path) -> None:
    above = ("vch.machine", "vch.clone", "vch.options", "vch.command")
    assert not {name for name in _imports(path) if name.startswith(above)}


@pytest.mark.parametrize("path", [path for path in _sources("vch") if path.parent.name != "command"], ids=str)
def test_nothing_below_knows_the_command_line(path: Path) -> None:
    assert not {name for name in _imports(path) if name.startswith("vch.command")}


@pytest.mark.parametrize("path", _sources("vch"), ids=str)
def test_the_appliance_knows_the_link_and_the_spec_of_the_agent(path: Path) -> None:
    of_the_agent = {name for name in _imports(path) if _top(name) == "tether"}
    assert all(name.startswith(SHARED_WITH_THE_HOST) for name in of_the_agent)
