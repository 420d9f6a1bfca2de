"""The boot image: the archive format, what a program needs, and that the same inputs give the same bytes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from imagebuild.boot import boot_image, cpio, initramfs, runtime
from imagebuild.boot.elf import Elf
from imagebuild.boot.kernel import Modules
from imagebuild.boot.kernel_cache import Kernel
from imagebuild.errors import InitramfsError

ROOT = Path(__file__).resolve().parents[2]


class TestCpio:
    ENTRIES = (
        cpio.file("etc/motd", b"hello", 0o600),
        cpio.symlink("bin/sh", "busybox"),
        cpio.character_device("dev/console", 5, 1),
        cpio.directory("tmp", 0o1777),
        cpio.file("empty", b""),
    )

    def test_a_header_by_hand(self) -> None:
        data = cpio.archive([cpio.file("a", b"xyz")])
        assert data[:110] == (
            b"070701" b"00000001" b"000081A4" b"00000000" b"00000000" b"00000001" b"00000000" b"00000003"
            b"00000000" b"00000000" b"00000000" b"00000000" b"00000002" b"00000000"
        )  # fmt: skip
        assert data[110:116] == b"a\0xyz\0"
        assert b"TRAILER!!!\0" in data
        assert len(data) % 4 == 0

    @pytest.mark.skipif(shutil.which("cpio") is None, reason="GNU cpio is not installed")
    def test_gnu_cpio_reads_it(self) -> None:
        listed = subprocess.run(["cpio", "-itv", "--numeric-uid-gid"], input=cpio.archive(self.ENTRIES),
                                capture_output=True, check=True).stdout.decode()
        modes = {line.split()[8]: line.split()[0] for line in listed.splitlines() if len(line.split()) > 8}
        assert modes["etc/motd"] == "-rw-------"
        assert modes["tmp"] == "drwxrwxrwt"
        assert "bin/sh -> busybox" in listed
        assert "5,   1" in listed

    def test_parents_come_first_and_order_does_not_matter(self) -> None:
        assert cpio.archive(self.ENTRIES) == cpio.archive(reversed(self.ENTRIES))
        data = cpio.archive(self.ENTRIES)
        assert data.index(b"etc\0") < data.index(b"etc/motd\0")

    @pytest.mark.parametrize("path", ["/etc", "a/../b", "", "a//b", "."])
    def test_paths_that_leave_the_root(self, path: str) -> None:
        with pytest.raises(ValueError, match="relative"):
            cpio.archive([cpio.file(path, b"")])

    def test_one_path_twice(self) -> None:
        with pytest.raises(ValueError, match="two entries"):
            cpio.archive([cpio.file("a", b""), cpio.directory("a")])


class TestElf:
    def test_the_interpreter(self) -> None:
        elf = Elf(Path("/usr/bin/python3.11"))
        assert elf.loader == "/lib64/ld-linux-x86-64.so.2"
        assert "libc.so.6" in elf.needed

    def test_a_library_has_its_name(self) -> None:
        assert Elf(Path("/lib/x86_64-linux-gnu/libc.so.6")).soname == "libc.so.6"

    @pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01" + bytes(10),
                                         b"\x7fELF\x02\x01" + b"\xff" * 100])
    def test_what_is_none(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(InitramfsError):
            Elf(path)

    def test_a_library_that_is_missing_is_named(self) -> None:
        with pytest.raises(InitramfsError, match=r"libnone\.so"):
            runtime.find_runtime().library_file("libnone.so")


class TestImage:
    def entries(self, scratch: Path) -> list[cpio.Entry]:
        return initramfs.entries(runtime.find_runtime(), ROOT, Modules([], {}), scratch)

    def test_the_same_inputs_give_the_same_bytes(self, tmp_path: Path) -> None:
        assert cpio.archive(self.entries(tmp_path / "a")) == cpio.archive(self.entries(tmp_path / "b"))

    def test_it_has_what_the_agent_imports_and_nothing_of_this_host(self, tmp_path: Path) -> None:
        found = {entry.path: entry for entry in self.entries(tmp_path)}
        assert found["init"].content.startswith(b"#!/usr/bin/python3.11 -")
        assert b"/start.modules" in found["init.pyc"].content
        assert "lib64/ld-linux-x86-64.so.2" in found
        assert any("_ctypes" in path for path in found)
        assert any("libffi" in path for path in found)
        assert not any(path.endswith(".py") for path in found)
        ours = [found[path] for path in ("init.pyc", "start.modules", "late.modules")]
        assert not any(str(ROOT).encode() in entry.content for entry in ours)
        assert sum(len(entry.content) for entry in found.values()) < 13_000_000

    def test_it_is_built_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(initramfs, "ZSTD_LEVEL", 1)
        kernel = Kernel("pico", "6.1", tmp_path, None, tmp_path, None)
        first = boot_image.build_initramfs(kernel, tmp_path)
        changed = first.path.stat().st_mtime_ns
        second = boot_image.build_initramfs(kernel, tmp_path)
        assert second == first
        assert second.path.stat().st_mtime_ns == changed
        assert [path.name for path in (tmp_path / "initramfs").iterdir()] == [first.path.name]

    def test_the_plain_one_is_the_same_archive_and_goes_with_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(initramfs, "ZSTD_LEVEL", 1)
        image = boot_image.build_initramfs(Kernel("pico", "6.1", tmp_path, None, tmp_path, None), tmp_path)
        plain = boot_image.plain_image(image)
        assert plain.stat().st_size == image.unpacked
        assert plain.read_bytes().startswith(cpio.MAGIC)
        assert boot_image.plain_image(image) == plain
        for number in range(boot_image.KEPT):
            (image.path.parent / f"{number}{boot_image.PACKED}").touch()
        boot_image._forget_old(image.path.parent)
        assert not image.path.exists()
        assert not plain.exists()

    def test_a_damaged_one_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "k.cpio.zst"
        path.write_bytes(b"not zstd")
        with pytest.raises(InitramfsError, match=r"k\.cpio\.zst"):
            boot_image.plain_image(boot_image.Initramfs(path, "k", 8))
