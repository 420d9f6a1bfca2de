"""A real image for the tests: Debian with Python, five layers, whiteouts and an opaque directory among them.

debootstrap makes the tree (root and the Debian mirror of this machine's apt are needed), this module splits it into
layers as a Dockerfile would have: the base system; Python; a clean-up that removes things of both; an application
with a user of its own; a last change.  The layout is kept in a cache folder under a key of this file's content.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from imagebuild.oci.compose import LayerTar, write_layout

SUITE = "bookworm"
DEBOOTSTRAP_SECONDS = 900  # 50 CPU seconds when alone; shared machines take several times that
PYTHON_PACKAGES = ("python3.11", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "python3")
CONFIG = {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"], "Cmd": ["python3"], "WorkingDir": "/app"}
OPAQUE = "usr/share/doc"
APP = b"import os, sys\nprint('app runs as', os.getuid(), 'with', sys.argv[1:])\n"


class CannotBuild(Exception):
    """This machine cannot make the image; the text says why (tests skip with it)."""


def cache_folder() -> Path:
    """Where test images are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vch-tests"


def debian_python_layout() -> Path:
    """The OCI layout (tag "latest"), made when it is not in the cache.  Raises CannotBuild."""
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    layout = cache_folder() / f"debian-python-{key}"
    if (layout / "index.json").exists():
        return layout
    with making(layout) as scratch:
        if scratch is not None:
            tree, fresh = scratch / "tree", scratch / "layout"
            debootstrap(tree, ("python3",))
            write_layout(fresh, _layers(tree), CONFIG)
            fresh.rename(layout)
    return layout


@contextmanager
def making(layout: Path) -> Iterator[Path | None]:
    """A folder to make it in, by one process of tests at a time; None if another has made it meanwhile."""
    layout.parent.mkdir(parents=True, exist_ok=True)
    with open(layout.with_suffix(".lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if layout.exists():
            yield None
            return
        with tempfile.TemporaryDirectory(dir=layout.parent, prefix="debootstrap-") as scratch:
            yield Path(scratch)


def debootstrap(tree: Path, packages: Sequence[str]) -> None:
    """A small Debian with these packages, unpacked and configured.  Raises CannotBuild."""
    if os.geteuid() != 0:
        raise CannotBuild("debootstrap needs root")
    if not shutil.which("debootstrap"):
        raise CannotBuild("debootstrap is not installed: apt-get install debootstrap")
    mirror = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT)", "Created-By: Packages"],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout
    sites = [line.split()[0] for line in mirror.splitlines() if line.split()[1:] == [SUITE, "main"]]
    if not sites:
        raise CannotBuild(f"apt on this machine knows no mirror of {SUITE}")
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", SUITE, str(tree), sites[0]]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEBOOTSTRAP_SECONDS)
    except subprocess.SubprocessError as error:
        output = getattr(error, "stdout", "") or ""
        raise CannotBuild(f"debootstrap failed: {error}: {output[-300:]}") from error
    for package in (tree / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()


def _layers(tree: Path) -> list[bytes]:
    python = _files_of(tree, PYTHON_PACKAGES)
    base = pack(tree, lambda name: name not in python)
    middle = pack(tree, lambda name: name in python)
    clean = LayerTar().directory(OPAQUE).file(f"{OPAQUE}/.wh..wh..opq", b"").whiteout("var/lib/apt/lists")
    clean.whiteout("var/cache/apt").whiteout("usr/bin/perl")
    app = LayerTar().directory("app").file("app/main.py", APP).file("app/old", b"old")
    passwd = (tree / "etc/passwd").read_bytes() + b"app:x:1000:1000::/home/app:/bin/sh\n"
    app.file("etc/passwd", passwd).file("etc/group", (tree / "etc/group").read_bytes() + b"app:x:1000:\n")
    last = LayerTar().directory("app").whiteout("app/old").file("app/new", b"new").symlink("app/link", "new")
    return [base, middle, clean.tar(), app.tar(), last.tar()]


def _files_of(tree: Path, packages: Iterable[str]) -> set[str]:
    names: set[str] = set()
    for package in packages:
        for listing in (tree / "var/lib/dpkg/info").glob(f"{package}*.list"):
            if listing.name.split(":")[0].removesuffix(".list") == package:
                names.update(line.lstrip("/") for line in listing.read_text().splitlines())
    return {name for name in names if (tree / name).is_file() or (tree / name).is_symlink()}


def pack(tree: Path, wanted: Callable[[str], bool]) -> bytes:
    """A tar of the tree's directories and the wanted other entries, in a fixed order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(tree.rglob("*")):
            name = str(path.relative_to(tree))
            if (path.is_dir() and not path.is_symlink()) or wanted(name):
                tar.add(path, arcname=name, recursive=False)
    return buffer.getvalue()


