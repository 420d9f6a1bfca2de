"""Modules: what a .ko says of itself, and which files a list of names needs."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from imagebuild.boot import kernel, kmod
from imagebuild.boot.kernel_cache import Kernel
from imagebuild.boot.kmod import Module, ModuleIndex
from imagebuild.errors import KernelError


def elf_with_modinfo(*items: str) -> bytes:
    """A relocatable ELF file with nothing but a .modinfo section and the names of its sections."""
    modinfo = b"".join(item.encode() + b"\0" for item in items)
    names = b"\0.modinfo\0.shstrtab\0"
    table = 64 + len(modinfo) + len(names)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)

    def section(name: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)

    return (head + modinfo + names + section(0, 0, 0) + section(1, 64, len(modinfo))
            + section(10, 64 + len(modinfo), len(names)))


def index(builtin: str = "", **depends: str) -> ModuleIndex:
    modules = {name: Module(f"kernel/{name}.ko", 1, tuple(needs.split())) for name, needs in depends.items()}
    return ModuleIndex(modules, frozenset(builtin.split()))


def names(modules: list[Module]) -> list[str]:
    return [kmod.canonical(module.file) for module in modules]


def test_modinfo_gives_every_value_of_a_key() -> None:
    elf = elf_with_modinfo("license=GPL", "alias=a", "depends=virtio,scsi_mod", "alias=b", "no value")
    assert kmod.modinfo(elf, "x.ko") == {"license": ["GPL"], "alias": ["a", "b"], "depends": ["virtio,scsi_mod"]}


def test_describe_names_what_comes_before() -> None:
    elf = elf_with_modinfo("depends=net-failover,virtio", "softdep=pre: crc32c nls post: later", "name=x")
    module = kmod.describe(elf, "kernel/x.ko")
    assert module == Module("kernel/x.ko", len(elf), ("net_failover", "virtio"), ("crc32c", "nls"))


def test_describe_of_a_module_that_needs_nothing() -> None:
    assert kmod.describe(elf_with_modinfo("depends="), "x.ko").depends == ()


@pytest.mark.parametrize("damage", [
    pytest.param(b"", id="empty"),
    pytest.param(b"\x7fELF\x01\x01" + bytes(200), id="32 bit"),
    pytest.param(elf_with_modinfo("depends=a")[:70], id="cut before the section headers"),
    pytest.param(elf_with_modinfo("depends=a")[:-1], id="cut in the section headers"),
    pytest.param(elf_with_modinfo("depends=a").replace(b".modinfo", b".notinfo"), id="no such section"),
])
def test_a_damaged_module_is_named(damage: bytes) -> None:
    with pytest.raises(KernelError, match=r"kernel/x\.ko"):
        kmod.describe(damage, "kernel/x.ko")


def test_closure_loads_what_is_needed_first_and_once() -> None:
    graph = index(a="b c", b="d", c="d", d="", unrelated="")
    assert names(kmod.closure(graph, ["a", "c"])) == ["d", "b", "c", "a"]


def test_closure_leaves_out_what_is_built_in() -> None:
    assert names(kmod.closure(index(builtin="ext4 crc", a="crc"), ["ext4", "a"])) == ["a"]


def test_closure_knows_both_spellings() -> None:
    assert names(kmod.closure(index(dm_mod="", dm_verity="dm_mod"), ["dm-verity"])) == ["dm_mod", "dm_verity"]


def test_closure_takes_optional_names_where_they_exist() -> None:
    assert names(kmod.closure(index(a=""), ["?ahci", "?a"])) == ["a"]


def test_a_missing_module_is_an_error_that_names_it() -> None:
    with pytest.raises(KernelError, match=r"6\.1-x: it has no module erofs "):
        kmod.closure(index(a=""), ["erofs"], "6.1-x")


def test_a_missing_dependency_names_who_needs_it() -> None:
    with pytest.raises(KernelError, match=r"no module b \(needed by a\)"):
        kmod.closure(index(a="b"), ["?a"])


def test_a_circle_is_an_error_and_not_an_endless_loop() -> None:
    with pytest.raises(KernelError, match="a -> b -> a"):
        kmod.closure(index(a="b", b="a"), ["a"])


def test_soft_dependencies_are_wishes() -> None:
    modules = {"a": Module("a.ko", 1, (), ("b", "absent")), "b": Module("b.ko", 1, (), ("b",))}
    assert names(kmod.closure(ModuleIndex(modules, frozenset()), ["a"])) == ["b", "a"]


def test_the_index_survives_json() -> None:
    graph = ModuleIndex({"a": Module("k/a.ko", 7, ("b",), ("c",))}, frozenset({"ext4"}))
    assert kmod.loads(kmod.dumps(graph), "x") == graph


@pytest.mark.parametrize("text", ["", "[]", '{"version": 99}', '{"version": 1, "modules": {"a": 1}, "builtin": []}'])
def test_a_damaged_index_is_an_error(text: str) -> None:
    with pytest.raises(KernelError, match=r"modules\.json"):
        kmod.loads(text, "modules.json")


def test_the_list_has_sections_and_comments() -> None:
    text = "# head\n[boot]\nvirtio_pci  # bus\n\n?e1000e\n[demand]\nisofs\n"
    assert kmod.parse_list(text) == {"boot": ["virtio_pci", "?e1000e"], "demand": ["isofs"]}


@pytest.mark.parametrize("text", ["virtio_pci\n", "[boot]\na b\n"])
def test_a_bad_list_names_the_line(text: str) -> None:
    with pytest.raises(KernelError, match="line "):
        kmod.parse_list(text)


def test_our_list_can_be_read_and_has_what_every_boot_needs() -> None:
    assert {"virtio_console", "erofs", "overlay"} <= set(kernel.wanted_modules("boot"))
    assert "isofs" in kernel.wanted_modules("demand")


@pytest.fixture
def installed(tmp_path: Path) -> Kernel:
    """A kernel folder as the cache has it, with two real (if tiny) modules."""
    folder = tmp_path / "modules"
    (folder / "kernel").mkdir(parents=True)
    (folder / "kernel" / "virtio.ko").write_bytes(elf_with_modinfo("depends="))
    (folder / "kernel" / "virtio-rng.ko").write_bytes(elf_with_modinfo("depends=virtio"))
    (folder / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    (tmp_path / kernel.MODULE_INDEX).write_text(kmod.dumps(kmod.scan(folder)))
    return Kernel("test", "6.1-test", tmp_path / "vmlinuz", None, tmp_path / "config", folder)


def test_files_come_in_load_order(installed: Kernel) -> None:
    files = kernel.module_files(installed, ["ext4", "virtio_rng"])
    assert [path.name for path in files] == ["virtio.ko", "virtio-rng.ko"]
    assert all(path.is_file() for path in files)


def test_a_damaged_file_of_the_cache_is_found(installed: Kernel) -> None:
    assert installed.modules is not None
    (installed.modules / "kernel" / "virtio.ko").write_bytes(b"cut")
    with pytest.raises(KernelError, match=r"virtio\.ko: it is missing or not whole"):
        kernel.module_files(installed, ["virtio_rng"])


def test_a_kernel_with_everything_built_in_needs_no_files(tmp_path: Path) -> None:
    pico = Kernel("pico", "6.1-pico", tmp_path / "vmlinuz", None, tmp_path / "config", None)
    assert kernel.boot_modules(pico) == []
    assert kernel.demand_modules(pico) == {}
