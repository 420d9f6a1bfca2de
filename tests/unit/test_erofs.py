"""EROFS images, judged by fsck.erofs, by the kernel and by GNU tar."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from imagebuild.layer.layer import ConvertedLayer, convert
from tests import torture
from tests.judges import Seen, fsck, look, mounted, needs_mount, needs_tool, snapshot

pytestmark = needs_tool("fsck.erofs")


def build(tmp_path: Path, archive: bytes, name: str = "layer.erofs") -> tuple[Path, ConvertedLayer]:
    """The image of *archive*."""
    image = tmp_path / name
    return image, convert(io.BytesIO(archive), destination=image)


def unpack(archive: bytes, root: Path, *options: str) -> Path:
    """The files of *archive* as GNU tar puts them on the host's own file system."""
    root.mkdir()
    subprocess.run(
        ["tar", "-x", "-p", "--same-owner", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", root, *options,
         "--warning=no-unknown-keyword", "--warning=no-timestamp"],
        input=archive, check=True,
    )  # fmt: skip
    return root


def as_file_systems_can(files: dict[bytes, Seen]) -> dict[bytes, Seen]:
    """Without what the host's file system adds on its own."""
    return {name: seen._replace(xattrs=tuple(x for x in seen.xattrs if x[0] != "security.selinux"))
            for name, seen in files.items()}  # fmt: skip


@needs_mount
def test_kernel_shows_what_tar_unpacks(tmp_path: Path) -> None:
    archive = torture.base_layer()
    image, layer = build(tmp_path, archive)
    fsck(image)
    assert not layer.needs
    expected = as_file_systems_can(snapshot(unpack(archive, tmp_path / "tar")))
    with mounted(image, tmp_path / "root") as root:
        assert as_file_systems_can(snapshot(root)) == expected
    assert len(expected) > 3050


@needs_mount
@pytest.mark.parametrize("budget", [0, 20_000])
def test_inodes_written_early_are_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    archive = torture.base_layer()
    plain, _ = build(tmp_path, archive, "plain")
    monkeypatch.setattr("imagebuild.layer.erofs_writer.TAIL_BUDGET", budget)
    early, _ = build(tmp_path, archive, "early")
    fsck(early)
    with mounted(plain, tmp_path / "a") as one, mounted(early, tmp_path / "b") as other:
        assert snapshot(one) == snapshot(other)


def test_same_input_same_bytes(tmp_path: Path) -> None:
    archive = torture.base_layer()
    first, _ = build(tmp_path, archive, "first")
    second, _ = build(tmp_path, archive, "second")
    assert first.read_bytes() == second.read_bytes()
    pieces = [archive[at : at + 777] for at in range(0, len(archive), 777)]
    third = tmp_path / "third"
    convert(pieces, destination=third)
    assert third.read_bytes() == first.read_bytes()


@needs_mount
@pytest.mark.parametrize(
    "form",
    ["--format=gnu", "--format=posix --sparse-version=0.0", "--format=posix --sparse-version=0.1",
     "--format=posix --sparse-version=1.0"],
)  # fmt: skip
def test_sparse_files(tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make_sparse(source / "ends in a hole", 3_000_000, [(0, b"begin"), (1_000_000, b"middle" * 1000)])
    make_sparse(source / "all hole", 1 << 33, [])
    make_sparse(source / "huge", 1 << 40, [(1 << 39, b"x"), ((1 << 40) - 1, b"y")])
    make_sparse(source / "many", 20_000_000, [(at * 100_000 + 5, b"%d" % at * 900) for at in range(200)])
    make_sparse(source / "last", 8191, [(4096, b"z" * 4095)])
    archive = subprocess.run(
        ["tar", "-c", "--sparse", *form.split(), "-C", source, "."], stdout=subprocess.PIPE, check=True
    ).stdout
    image, layer = build(tmp_path, archive)
    assert layer.tar_size < 4_000_000
    with mounted(image, tmp_path / "root") as root:
        for original in source.iterdir():
            assert (root / original.name).stat().st_size == original.stat().st_size
        for name in ("ends in a hole", "many", "last"):
            assert (root / name).read_bytes() == (source / name).read_bytes()
        with open(root / "huge", "rb") as file:
            file.seek((1 << 39) - 10)
            assert file.read(20) == bytes(10) + b"x" + bytes(9)
            file.seek(-5, 2)
            assert file.read() == bytes(4) + b"y"


@needs_mount
def test_more_attributes_than_a_block_holds(tmp_path: Path) -> None:
    values = {f"user.large{at:02d}": torture.pattern(at * 160, at) for at in range(40)}
    archive = torture.Archive().add("file", torture.pattern(5000), xattrs=values).bytes()
    image, _ = build(tmp_path, archive)
    fsck(image)
    with mounted(image, tmp_path / "root") as root:
        assert dict(look(os.fsencode(root / "file")).xattrs) == values
        assert (root / "file").read_bytes() == torture.pattern(5000)


@needs_tool("fsck.erofs")
def test_images_that_end_with_a_full_block_of_inodes(tmp_path: Path) -> None:
    for count in range(60, 100):
        tar = torture.Archive()
        for at in range(count):
            tar.add(f"{at:03d}", type=tarfile.FIFOTYPE, mtime=5)
        image, layer = build(tmp_path, tar.bytes(), f"{count}")
        fsck(image)
        assert layer.image_size <= 3 * 4096
    for size in range(3000, 4033, 32):
        image, _ = build(tmp_path, torture.Archive().add("f", bytes(size)).bytes(), f"size{size}")
        fsck(image)


def make_sparse(path: Path, size: int, parts: list[tuple[int, bytes]]) -> None:
    """A file of *size* with data at the offsets given and holes elsewhere."""
    with open(path, "wb") as file:
        for offset, data in parts:
            file.seek(offset)
            file.write(data)
        file.truncate(size)
