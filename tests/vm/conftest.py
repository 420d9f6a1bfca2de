"""What the VM tests share: a state folder, real images in a real registry, and `vch` as a user calls it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagebuild.home import home as users_home
from tests.debian_image import CannotBuild, cache_folder, debian_python_layout
from tests.registry_fixture import running_registry

ROOT = Path(__file__).parents[2]
VCH = ROOT / ".venv/bin/vch"
Completed = subprocess.CompletedProcess[bytes]
RUN_SECONDS = 240  # a cold boot takes a few CPU seconds; a loaded machine several times that


@pytest.fixture(scope="session")
def home() -> Path:
    """The state folder of the tests, kept between runs: kernels, boot images and layers are content-addressed in it.

    Each process of tests (pytest-xdist) has one of its own: some look whether anything of it has changed.
    """
    kept = Path(os.environ.get("VCH_TEST_HOME") or cache_folder() / "home")
    folder = kept / os.environ.get("PYTEST_XDIST_WORKER", "")
    folder.mkdir(parents=True, exist_ok=True)
    _share_pico(users_home(), folder)
    os.environ["VCH_HOME"] = str(folder)
    return folder


def _share_pico(built: Path, folder: Path) -> None:
    """A pico kernel that `make pico` has built serves the tests, too: they take half the time then."""
    (folder / "kernels").mkdir(exist_ok=True)
    for kernel in built.glob("kernels/pico*"):
        link = folder / "kernels" / kernel.name
        if kernel.is_dir() and not link.exists():
            link.unlink(missing_ok=True)  # of one that is gone
            link.symlink_to(kernel)


@pytest.fixture(scope="session", autouse=True)
def templates() -> Iterator[Path]:
    """A folder, in memory, for what the machines of the tests are cloned from; it ends with the tests."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="vch-tests-", dir=memory if memory.is_dir() else None) as folder:
        os.environ["VCH_TEMPLATES"] = folder
        yield Path(folder)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an empty docker-registry."""
    with running_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="session")
def demo_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo image as an OCI layout, tag "demo"."""
    from imagebuild.demo import write_demo

    layout = tmp_path_factory.mktemp("demo") / "layout"
    write_demo(layout)
    return layout


@pytest.fixture(scope="session")
def busybox_image(registry: str, demo_layout: Path) -> str:
    """Reference of busybox in the registry."""
    return copied(f"oci:{demo_layout}:demo", f"{registry}/library/busybox:1.35")


@pytest.fixture(scope="session")
def python_image(registry: str) -> str:
    """Reference of Debian with Python in the registry; skips where it cannot be made."""
    try:
        layout = debian_python_layout()
    except CannotBuild as reason:
        pytest.skip(str(reason))
    return copied(f"oci:{layout}:latest", f"{registry}/debian/python:3.11")


def copied(source: str, reference: str) -> str:
    """Copies an image into the registry with skopeo, a program that is not ours; gives the reference."""
    if not shutil.which("skopeo"):
        pytest.skip("skopeo is not installed (apt install skopeo)")
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", source, f"docker://{reference}"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=RUN_SECONDS)
    return reference


class Vch:
    """The `vch` command, as a subprocess with the state folder of the tests."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *words: str, stdin: bytes = b"", timeout: float = RUN_SECONDS) -> Completed:
        return subprocess.run([VCH, *words], input=stdin, capture_output=True, timeout=timeout, check=False)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Starts it and returns at once."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [VCH, *words],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            preexec_fn=_default_signals,  # noqa: PLW1509 - it does nothing that a thread could disturb
        )


def _default_signals() -> None:
    """A signal that is ignored stays ignored in children: nohup and background jobs would change what the tests see."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def vch(home: Path) -> Vch:
    """Runs `vch`."""
    return Vch(home)


@pytest.fixture
def own_templates(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of templates for one test, which may damage them."""
    folder = Path(os.environ["VCH_TEMPLATES"]) / f"own-{time.monotonic_ns()}"
    folder.mkdir()
    monkeypatch.setenv("VCH_TEMPLATES", str(folder))
    yield folder / f"vch-{os.geteuid()}"
    shutil.rmtree(folder)
