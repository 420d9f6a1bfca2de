"""What `vch run` imports before a clone of an image that is there already runs: each start pays for it.

Everything else is imported where it is needed (docs/architecture.md, "Named tuples on the way to a clone").
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INTERPRETER = "/usr/bin/python3.11" if Path("/usr/bin/python3.11").exists() else sys.executable

# The command, and what it imports late on this way.
ON_THE_WAY = (
    "vch.command.cli", "vch.options.run_options", "vch.command.run", "imagebuild.sources.open_source",
    "imagebuild.transfer.fetch", "imagebuild.sources.bundle", "imagebuild.sources.oci_layout",
)  # fmt: skip

# Not dataclasses (and with it inspect, ast, tokenize), shutil and tempfile (bz2, lzma, random), uuid, tomllib, asyncio,
# and nothing that was installed: no HTTP client, no compressor, no tables.
STANDARD_LIBRARY = {
    "__future__", "_blake2", "_collections", "_collections_abc", "_ctypes", "_functools", "_hashlib", "_json",
    "_locale", "_operator", "_posixsubprocess", "_socket", "_sre", "_stat", "_struct", "_typing", "_weakrefset",
    "array", "collections", "contextlib", "copyreg", "ctypes", "enum", "errno", "fcntl", "fnmatch", "functools", "gc",
    "genericpath", "hashlib", "importlib", "ipaddress", "itertools", "json", "keyword", "locale", "math", "ntpath",
    "operator", "os", "pathlib", "posixpath", "re", "reprlib", "resource", "select", "selectors", "signal", "socket",
    "stat", "struct", "subprocess", "termios", "threading", "tty", "types", "typing", "urllib", "warnings", "zlib",
}  # fmt: skip

# What finds an image, a kernel and a boot image; nothing of what makes them.
IMAGEBUILD = {
    "boot.boot_image", "boot.kernel", "boot.kernel_cache", "boot.kmod", "boot.pico", "boot.runtime", "digest",
    "disk.vmdk", "errors", "files", "home", "jsoncheck", "locks", "oci.imageconfig", "oci.manifest", "oci.platforms",
    "oci.reference", "sources.bundle", "sources.oci_layout", "sources.open_source", "sources.source",
    "sources.spelling", "store.image", "store.kinds", "store.lease", "store.store", "transfer.fetch",
    "transfer.progress", "transfer.pulling",
}  # fmt: skip


def test_a_clone_imports_nothing_but_what_is_listed() -> None:
    code = (
        f"import sys; own = set(sys.modules); sys.path.insert(0, {str(ROOT)!r}); import {', '.join(ON_THE_WAY)}; "
        "print(*set(sys.modules) - own)"
    )
    command = [INTERPRETER, "-I", "-S", "-Xutf8", "-c", code]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {name.partition(".")[0] for name in names} - {"vch", "tether", "imagebuild"} <= STANDARD_LIBRARY
    packages = {name.rpartition(".")[0] for name in names}
    ours = {name.removeprefix("imagebuild.") for name in names if name.startswith("imagebuild.")}
    assert {name for name in ours if f"imagebuild.{name}" not in packages} <= IMAGEBUILD
