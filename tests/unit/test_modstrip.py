"""Kernel modules without their signatures, type information and unwinding tables."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from imagebuild.boot.modstrip import stripped, without_signature, without_tables

SIGNATURE = b"s" * 256


def signed(module: bytes, length: int = len(SIGNATURE)) -> bytes:
    """As scripts/sign-file appends it."""
    return module + SIGNATURE + struct.pack(">BBBBB3xI", 0, 0, 2, 0, 0, length) + b"~Module signature appended~\n"


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An object file with the sections that are not wanted, and others, by the assembler."""
    if not shutil.which("as"):
        pytest.skip("needs binutils")
    folder = tmp_path_factory.mktemp("module")
    text = """
        .section .BTF
        .ascii "types of this module"
        .section .BTF_ids
        .ascii "ids"
        .section .orc_unwind, "a"
        .ascii "frames"
        .section .orc_unwind_ip, "a"
        .long code - .
        .text
        code: .ascii "code"
    """
    subprocess.run(["as", "-o", folder / "m.o"], input=text.encode(), cwd=folder, check=True)
    return (folder / "m.o").read_bytes()


def sections(content: bytes, folder: Path) -> str:
    (folder / "m.o").write_bytes(content)
    return subprocess.run(["readelf", "-SW", folder / "m.o"], capture_output=True, text=True, check=True).stdout


class TestSignature:
    def test_it_is_cut_off(self, module: bytes) -> None:
        assert without_signature(signed(module)) == module

    def test_what_is_not_signed_stays(self, module: bytes) -> None:
        assert without_signature(module) == module

    @pytest.mark.parametrize("content", [b"", b"~Module signature appended~\n", signed(b"x", 1 << 31)])
    def test_what_makes_no_sense_stays(self, content: bytes) -> None:
        assert without_signature(content) == content


class TestTables:
    def test_the_kernel_no_longer_finds_them_but_everything_else(self, module: bytes, tmp_path: Path) -> None:
        before, after = sections(module, tmp_path), sections(without_tables(module), tmp_path)
        for name in (".BTF", ".orc_unwind", ".orc_unwind_ip", ".rela.orc_unwind_ip"):
            assert f" {name} " in before
            assert f" {name} " not in after
        assert after.count("PROGBITS") == before.count("PROGBITS")
        assert " .BTF_ids " in after
        assert b"types of this module" not in without_tables(module)
        assert b"frames" not in without_tables(module)
        assert b"code" in without_tables(module)

    def test_the_kernel_has_no_memory_for_them(self, module: bytes, tmp_path: Path) -> None:
        lines = sections(without_tables(module), tmp_path).splitlines()
        assert not [line for line in lines if ".ORC_UNWIND" in line.upper() and " A " in line]

    @pytest.mark.parametrize("content", [b"", b"\x7fELF", bytes(64), b"\xff" * 100])
    def test_what_is_no_module_stays(self, content: bytes) -> None:
        assert stripped(content) == content
