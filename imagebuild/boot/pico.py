"""The pico kernel that was built here, out of the cache; pico_build.py builds it.

Every machine asks for it, so nothing that only building needs is imported to find it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from imagebuild.boot import kernel_cache
from imagebuild.boot.kernel_cache import Kernel, parse_config

KIND = "pico"
RECIPE = 2  # counts up when the same fragment and source would give another result


def fragment_text() -> str:
    """The text of initramfs/pico.config, from a checkout or an installed package."""
    return kernel_cache.data_file("pico.config").read_text(encoding="utf-8")


def fragment_key(fragment: str) -> str:
    """What of a fragment decides the result: its set lines.  Comments and order may change without a build."""
    lines = "\n".join(f"{name}={value}" for name, value in sorted(parse_config(fragment).items()))
    return hashlib.sha256(f"{RECIPE}\n{lines}".encode()).hexdigest()


def pico(cache: Path) -> Kernel | None:
    """The pico kernel that was built for the current fragment, the newest first; None: not built.

    A newer linux-source package alone does not make it disappear: ``build_pico`` notices and builds.
    """
    wanted = fragment_key(fragment_text())
    folder = cache / "kernels"
    for candidate in itertools.chain((folder / KIND,), _all(folder)):
        found = kernel_cache.load(candidate)
        if found is not None and found[1].get("fragment") == wanted:
            return found[0]
    return None


def _all(folder: Path) -> Iterator[Path]:
    """Every one in the cache; looked for only when the newest is not the one."""
    yield from sorted(folder.glob(f"{KIND}-*"))
