"""The pico kernel's fragment, its checks before a build, and the cache that keeps kernels."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from imagebuild.boot import kernel, kernel_cache, pico, pico_build
from imagebuild.errors import KernelError


def test_the_fragment_names_every_line_once_and_nothing_as_a_module() -> None:
    lines = [line for line in pico.fragment_text().splitlines() if line.startswith(("CONFIG_", "# CONFIG_"))]
    options = kernel_cache.parse_config(pico.fragment_text())
    assert len(lines) == len(options)
    assert "m" not in options.values()


@pytest.mark.parametrize("name", [
    "EROFS_FS", "OVERLAY_FS", "EXT4_FS", "SQUASHFS", "DM_VERITY", "VIRTIO_CONSOLE", "VIRTIO_BALLOON", "VIRTIO_VSOCKETS",
    "VMWARE_PVSCSI", "VMWARE_VMCI_VSOCKETS", "VMXNET3", "NF_TABLES", "IP_NF_IPTABLES", "SATA_AHCI", "BLK_DEV_SR", "PVH",
    "EFI_STUB", "VMGENID", "PSI", "X86_PM_TIMER", "NFS_V3", "NFS_V4",
])
def test_the_fragment_has_what_the_product_promises(name: str) -> None:
    assert kernel_cache.parse_config(pico.fragment_text())[f"CONFIG_{name}"] == "y"


def test_a_comment_needs_no_new_build_and_a_line_does() -> None:
    key = pico.fragment_key("# why\nCONFIG_A=y\nCONFIG_B=y\n")
    assert pico.fragment_key("CONFIG_B=y\n# because\nCONFIG_A=y\n") == key
    assert pico.fragment_key("CONFIG_A=y\n") != key
    assert pico.fragment_key("# CONFIG_A is not set\nCONFIG_B=y\n") != key


def test_lines_that_did_not_survive_are_named() -> None:
    config = 'CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_NAME="x"\n'
    fragment = 'CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\nCONFIG_D=y\n# CONFIG_E is not set\nCONFIG_NAME="x"\n'
    assert pico_build.unmet(fragment, config) == ["CONFIG_B: n wanted, y got", "CONFIG_C: y wanted, n got",
                                            "CONFIG_D: y wanted, n got"]


def test_names_of_other_versions_may_be_unknown_but_not_refused() -> None:
    name = next(iter(pico_build.OTHER_VERSIONS))
    assert pico_build.unmet(f"{name}=y\n", "") == []
    assert pico_build.unmet(f"{name}=y\n", f"# {name} is not set\n") == [f"{name}: y wanted, n got"]


def test_the_tested_source_is_taken_before_a_newer_one(tmp_path: Path) -> None:
    for version in ("6.1", "6.12", "5.10"):
        (tmp_path / f"linux-source-{version}.tar.xz").touch()
    assert pico_build.find_source(tmp_path).name == "linux-source-6.1.tar.xz"
    (tmp_path / "linux-source-6.1.tar.xz").unlink()
    assert pico_build.find_source(tmp_path).name == "linux-source-6.12.tar.xz"


def test_no_source_says_which_package_has_it(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"apt-get install linux-source-6\.1"):
        pico_build.find_source(tmp_path)


def test_missing_tools_are_named_by_package(tmp_path: Path) -> None:
    make = tmp_path / "make"
    make.touch(mode=0o755)
    (tmp_path / "gelf.h").touch()
    assert pico_build.missing_packages(str(tmp_path), tmp_path) == sorted(
        {"bc", "binutils", "bison", "flex", "gcc", "libc6-dev", "libssl-dev", "lz4", "perl", "xz-utils"})


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.mkdir()
    (made / "vmlinuz").write_bytes(b"image")
    (made / "config").write_text("CONFIG_PVH=y\n# CONFIG_SMP is not set\nCONFIG_HZ=250\n")
    return made


def record(key: str) -> dict[str, str]:
    return {"name": "pico", "release": "6.1-pico", "fragment": key}


def test_an_installed_kernel_is_found_and_read(tmp_path: Path, scratch: Path) -> None:
    current = pico.fragment_key(pico.fragment_text())
    made = kernel_cache.install(tmp_path, scratch, "pico-1", "pico", record(current))
    assert pico.pico(tmp_path) == made
    assert kernel.choose(tmp_path) == made
    assert made.release == "6.1-pico"
    assert (made.pvh, made.modules) == (None, None)
    assert [made.option(name) for name in ("PVH", "CONFIG_SMP", "CONFIG_HZ", "ABSENT")] == ["y", "n", "250", "n"]


def test_a_kernel_of_another_fragment_is_not_taken(tmp_path: Path, scratch: Path) -> None:
    kernel_cache.install(tmp_path, scratch, "pico-1", "pico", record("another"))
    assert pico.pico(tmp_path) is None
    with pytest.raises(KernelError, match="make pico"):
        kernel.choose(tmp_path, "pico")


@pytest.mark.parametrize("damage", ["vmlinuz", "config", "kernel.json"])
def test_a_kernel_that_is_not_whole_is_not_taken(tmp_path: Path, scratch: Path, damage: str) -> None:
    current = pico.fragment_key(pico.fragment_text())
    made = kernel_cache.install(tmp_path, scratch, "pico-1", "pico", record(current))
    (made.image.parent / damage).unlink()
    assert pico.pico(tmp_path) is None


def test_a_damaged_record_is_no_kernel(tmp_path: Path, scratch: Path) -> None:
    made = kernel_cache.install(tmp_path, scratch, "pico-1", "pico", record("x"))
    for text in ("", "[]", "{}", json.dumps({"name": "pico"})):
        (made.image.parent / "kernel.json").write_text(text)
        assert kernel_cache.newest(tmp_path, "pico") is None


def test_an_unknown_kernel_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="pico or debian-cloud"):
        kernel.choose(tmp_path, "bsd")


def test_a_folder_is_removed_whatever_happens_in_it(tmp_path: Path) -> None:
    seen: list[Path] = []

    def fail_halfway() -> None:
        with kernel_cache.making(tmp_path, "pico", kernel_cache.silent) as (folder, _lock):
            seen.append(folder)
            (folder / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert seen
    assert not seen[0].exists()


def test_what_a_killed_process_left_is_removed_and_its_lock_is_free(tmp_path: Path) -> None:
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:  # a process that is killed while it makes a kernel
        with kernel_cache.making(tmp_path, "pico", kernel_cache.silent) as (folder, _lock):
            (folder / "half").touch()
            os.write(tell, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert list((tmp_path / "kernels").glob(".pico-new-*/half"))
    with kernel_cache.making(tmp_path, "pico", kernel_cache.silent) as (folder, _lock):
        assert list((tmp_path / "kernels").glob(".pico-new-*")) == [folder]


def test_two_processes_make_a_kernel_one_after_the_other(tmp_path: Path) -> None:
    order = tmp_path / "order"
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with kernel_cache.making(tmp_path, "pico", kernel_cache.silent):
            os.write(tell, b"x")
            time.sleep(0.2)
            order.write_text("first ")
        os._exit(0)
    os.read(ready, 1)
    said: list[str] = []
    with kernel_cache.making(tmp_path, "pico", said.append):
        order.write_text(order.read_text() + "second")
    os.waitpid(child, 0)
    assert order.read_text() == "first second"
    assert said == ["pico kernel: wait for another process that makes it"]


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("a file where the folder belongs")
    with pytest.raises(KernelError, match="make the folder writable"):
        kernel_cache.kernels_folder(tmp_path)


def test_a_host_of_another_architecture_is_told_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(KernelError, match=r"this host is aarch64 .*x86-64 host"):
        pico_build.build_pico(tmp_path, sources=tmp_path)
    with pytest.raises(KernelError, match=r"this host is aarch64 .*x86-64 host"):
        kernel.debian_cloud(tmp_path)
