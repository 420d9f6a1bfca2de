"""Compressed and delta VMDKs, judged by qemu-img, qemu-io and dissect."""

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from dissect.hypervisor.disk.vmdk import VMDK

from imagebuild.disk import vmdk
from imagebuild.disk.vmdk_read import FlatExtent, read_descriptor
from imagebuild.disk.vmdk_sparse import COVERAGE, GRAIN, MAX_SIZE, seal, write_delta, write_stream_optimized
from imagebuild.errors import DiskError

needs_qemu_img = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")


def _raw(path: Path, size: int, seed: int = 3) -> Path:
    """A disk with grains of noise, of text and of zeros, and holes over whole tables."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        for at in range(0, size, GRAIN):
            kind = chance.randrange(4) if at < 4 << 20 or at > size - (1 << 20) else 0
            if kind:
                file.seek(at)
                file.write(chance.randbytes(GRAIN) if kind == 1 else b"the same line again\n" * 3000)
        file.truncate(size)
    return path


def _convert(disk: Path, raw: Path) -> bytes:
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, raw], check=True)
    return raw.read_bytes()


@needs_qemu_img
@pytest.mark.parametrize("size", [GRAIN, 512, 3 * GRAIN + 512, COVERAGE, 3 * COVERAGE + 5 * 4096], ids=str)
@pytest.mark.parametrize("level", [1, 3, 6])
def test_every_reader_reads_a_compressed_disk(size: int, level: int, tmp_path: Path) -> None:
    raw = _raw(tmp_path / "raw", size)
    disk = tmp_path / "disk.vmdk"
    written = write_stream_optimized([FlatExtent(raw, size // 512)], disk, level=level)
    assert written == disk.stat().st_size
    subprocess.run(["qemu-img", "check", disk], check=True, capture_output=True)
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", disk]))
    assert info["format-specific"]["data"]["create-type"] == "streamOptimized"
    assert info["virtual-size"] == size
    assert _convert(disk, tmp_path / "back") == raw.read_bytes()
    stream = VMDK(disk)
    assert stream.read_sectors(0, size // 512) == raw.read_bytes()


def test_the_same_disk_gives_the_same_bytes_on_any_number_of_cores(tmp_path: Path) -> None:
    raw = _raw(tmp_path / "raw", 8 << 20)
    contents = set()
    for workers in (1, 2, 5):
        write_stream_optimized([FlatExtent(raw, (8 << 20) // 512)], tmp_path / "disk.vmdk", workers=workers)
        contents.add((tmp_path / "disk.vmdk").read_bytes())
    assert len(contents) == 1
    assert sorted(os.listdir(tmp_path)) == ["disk.vmdk", "raw"]


@needs_qemu_img
def test_an_image_disk_becomes_one_file(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    layers = []
    for number in range(3):
        path = _raw(tmp_path / f"{number}.erofs", (number + 1) * 4096 * 5, number)
        layers.append(vmdk.DiskLayer(f"sha256:{number:032x}{number:032x}", path))
    disk = vmdk.image_disk(layers, tmp_path / "disk")
    flat = read_descriptor(disk).flat
    assert len(flat) == 5
    write_stream_optimized(flat, tmp_path / "one.vmdk")
    assert _convert(tmp_path / "one.vmdk", tmp_path / "a") == _convert(disk, tmp_path / "b")


def test_a_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    raw = _raw(tmp_path / "raw", GRAIN)
    with pytest.raises(DiskError, match="shorter"):
        write_stream_optimized([FlatExtent(raw, 129)], tmp_path / "disk.vmdk")
    with pytest.raises(DiskError, match="more than"):
        write_stream_optimized([FlatExtent(raw, MAX_SIZE // 512 + 1)], tmp_path / "disk.vmdk")
    assert os.listdir(tmp_path) == ["raw"]


def _io(disk: Path, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    return subprocess.run(["qemu-io", *words, disk], check=True, capture_output=True, text=True).stdout


@needs_qemu_img
@pytest.mark.parametrize("size", [4 << 20, 3 * COVERAGE + 4096])
def test_a_chain_of_deltas(size: int, tmp_path: Path) -> None:
    raw = _raw(tmp_path / "raw", size)
    parent = tmp_path / "parent.vmdk"
    parent.write_text(vmdk.flat("raw", size // 512))
    before = raw.read_bytes()
    seal(parent)
    assert not parent.stat().st_mode & 0o222
    assert not raw.stat().st_mode & 0o222
    (tmp_path / "deltas").mkdir()
    one, two = tmp_path / "deltas" / "one.vmdk", tmp_path / "deltas" / "two.vmdk"
    write_delta(parent, one)
    assert one.stat().st_blocks * 512 < 128 << 10
    assert _convert(one, tmp_path / "a") == before
    _io(one, "write -P 7 65536 4096")
    write_delta(one, two)
    _io(two, "write -P 9 0 512", f"write -P 9 {size - 4096} 4096")
    expected = bytearray(before)
    expected[65536 : 65536 + 4096] = b"\7" * 4096
    assert _convert(one, tmp_path / "a") == expected
    expected[0:512] = b"\x09" * 512
    expected[-4096:] = b"\x09" * 4096
    assert _convert(two, tmp_path / "a") == expected
    assert raw.read_bytes() == before
    for disk in (one, two):
        subprocess.run(["qemu-img", "check", disk], check=True, capture_output=True)
    assert VMDK(one).read_sectors(0, 1024) == _convert(one, tmp_path / "a")[: 1024 * 512]


def test_a_delta_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "parent.vmdk").write_text(vmdk.flat("raw", 8))
    (tmp_path / "child.vmdk").write_text("precious")
    with pytest.raises(Exception, match="exists"):
        write_delta(tmp_path / "parent.vmdk", tmp_path / "child.vmdk")
    assert (tmp_path / "child.vmdk").read_text() == "precious"


@pytest.mark.parametrize("content", [b"", b"KDMV", b"\xff" * 2000, b"# Disk DescriptorFile\nCID=1\n"])
def test_what_is_no_vmdk_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(content)
    with pytest.raises(DiskError, match="has no descriptor"):
        read_descriptor(tmp_path / "disk")
    with pytest.raises(DiskError, match="No such file"):
        read_descriptor(tmp_path / "nothing")
