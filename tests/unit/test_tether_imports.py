"""What PID 1 imports: every module here is paid for at every cold boot, so a new one is a decision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INTERPRETER = "/usr/bin/python3.11" if Path("/usr/bin/python3.11").exists() else sys.executable

# What the interpreter itself has imported before the first line.
INTERPRETERS_OWN = {
    "__main__", "_abc", "_codecs", "_collections_abc", "_frozen_importlib", "_frozen_importlib_external", "_imp", "_io",
    "_signal", "_stat", "_thread", "_warnings", "_weakref", "abc", "builtins", "codecs", "encodings",
    "encodings.aliases", "encodings.utf_8", "genericpath", "io", "marshal", "os", "os.path", "posix", "posixpath",
    "stat", "sys", "time", "zipimport",
}  # fmt: skip

# All in C but struct, which is three lines around _struct.
AGENTS_OWN = {
    "_collections", "_ctypes", "_socket", "_struct", "errno", "faulthandler", "fcntl", "gc", "select", "struct", "zlib",
}  # fmt: skip


def _imported(statement: str) -> set[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {statement}; print(*sys.modules)"
    done = subprocess.run([INTERPRETER, "-I", "-S", "-Xutf8", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_interpreters_own() -> None:
    assert _imported("pass") <= INTERPRETERS_OWN


def test_the_agent_adds_nothing_but_what_is_listed() -> None:
    added = _imported("import tether.__main__") - INTERPRETERS_OWN
    assert {name for name in added if name.partition(".")[0] != "tether"} <= AGENTS_OWN
