"""Real images from a real registry, run as VMs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from imagebuild.demo import demo_layers, fetch_busybox
from imagebuild.oci.compose import LayerTar, write_layout
from tests.vm.conftest import Vch

pytestmark = pytest.mark.vm


def test_busybox_keeps_its_streams_apart_and_its_exit_code(vch: Vch, busybox_image: str) -> None:
    run = vch("run", "--rm", busybox_image, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (run.returncode, run.stdout, run.stderr.splitlines()[-1]) == (3, b"out\n", b"err")


def test_debian_python_imports_its_compiled_modules(vch: Vch, python_image: str) -> None:
    run = vch("run", "--rm", "-m", "512m", python_image, "python3", "-c", 'import ssl, sqlite3; print("ok")')
    assert (run.returncode, run.stdout) == (0, b"ok\n"), run.stderr.decode()


def test_whiteouts_and_later_layers_win(vch: Vch, python_image: str) -> None:
    look = "ls /usr/bin/perl /var/lib/apt/lists /app/old 2>&1; ls -A /usr/share/doc; cat /app/link; id -un app; pwd"
    run = vch("run", "--rm", "-m", "512m", python_image, "sh", "-c", look)
    lines = run.stdout.decode().splitlines()
    assert sum("No such file" in line for line in lines) == 3, lines
    assert lines[3:] == ["newapp", "/app"]


def test_stdin_arrives_whole_and_its_end_is_seen(vch: Vch, busybox_image: str) -> None:
    data = hashlib.shake_128(b"in").digest(50_000_000)
    run = vch("run", "--rm", "-i", busybox_image, "sha256sum", stdin=data)
    assert run.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_bulk_data_comes_back_whole(vch: Vch, busybox_image: str) -> None:
    data = hashlib.shake_128(b"out").digest(50_000_000)
    run = vch("run", "--rm", "-i", busybox_image, "cat", stdin=data)
    assert (len(run.stdout), run.stdout == data) == (len(data), True)


def test_as_many_layers_as_docker_builds(vch: Vch, tmp_path: Path) -> None:
    base = demo_layers(fetch_busybox())
    more = [LayerTar().directory("n").file(f"n/{number}", b"%d\n" % number).tar() for number in range(127 - len(base))]
    write_layout(tmp_path / "many", [*base, *more], {"Env": ["PATH=/bin"]})
    run = vch("run", f"oci:{tmp_path / 'many'}:latest", "sh", "-c", "ls /n | wc -l; cat /n/0 /n/123")
    assert (run.stdout, run.returncode) == (b"124\n0\n123\n", 0), run.stderr
