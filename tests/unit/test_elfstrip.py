"""Programs and libraries without their unwinding tables: shorter, and they still run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from imagebuild.boot import runtime
from imagebuild.boot.elfstrip import PAGE, without_unwinding

LIBRARIES = ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1")


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter with its loader and libraries, all stripped, in one folder."""
    folder = tmp_path_factory.mktemp("stripped")
    python = runtime.find_runtime()
    for path in (python.interpreter, *(python.library_file(name) for name in (*LIBRARIES, "ld-linux-x86-64.so.2"))):
        (folder / path.name).write_bytes(without_unwinding(path.read_bytes()))
        (folder / path.name).chmod(0o755)
    return folder / python.interpreter.name


def test_the_interpreter_runs(interpreter: Path) -> None:
    folder = interpreter.parent
    program = (
        "import math, threading, zlib; t = threading.Thread(target=print, args=(math.cos(0), zlib.crc32(b'a')));"
        "t.start(); t.join(); print(open('/proc/self/maps').read().count('stripped') > 10)"
    )
    loader = folder / "ld-linux-x86-64.so.2"
    command: list[str | Path] = [loader, "--library-path", folder, interpreter, "-I", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1.0 3904355907\nTrue\n"


def test_an_exception_still_has_its_traceback(interpreter: Path) -> None:
    done = subprocess.run([interpreter, "-I", "-c", "1 / 0"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_a_page_and_more_is_gone_from_each(interpreter: Path) -> None:
    python = runtime.find_runtime()
    for original in (python.interpreter, *(python.library_file(name) for name in LIBRARIES)):
        assert (interpreter.parent / original.name).stat().st_size <= original.stat().st_size - PAGE


def test_what_comes_after_the_tables_stays(tmp_path: Path) -> None:
    """A linker may put more read-only data behind them; the segment is then cut in two."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    source, linked, program = tmp_path / "a.c", tmp_path / "linked", tmp_path / "program"
    body = "".join(f"int f{n}(int a) {{ char b[a]; g(b); return b[{n}]; }}\n" for n in range(1000))
    last = '__attribute__((section(".zz_last"))) const char last[] = "last";\n'
    main = "int main(void) { return puts(last) < 0; }\n"
    source.write_text("#include <stdio.h>\nvoid g(char *b) { b[0] = 1; }\n" + body + last + main)
    script = "-Wl,--section-start=.zz_last=0x700000"
    subprocess.run(["gcc", "-w", "-no-pie", "-O1", script, "-o", linked, source], check=True, timeout=120)
    program.write_bytes(without_unwinding(linked.read_bytes()))
    program.chmod(0o755)
    assert program.stat().st_size < linked.stat().st_size - 4 * PAGE
    assert subprocess.run([program], capture_output=True, text=True, timeout=60, check=True).stdout == "last\n"


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + b"\xff" * 100])
def test_what_is_no_program_stays(content: bytes) -> None:
    assert without_unwinding(content) == content


def test_twice_is_once(interpreter: Path) -> None:
    content = interpreter.read_bytes()
    assert without_unwinding(content) == content
