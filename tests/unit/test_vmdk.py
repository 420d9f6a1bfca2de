"""Image disks, judged by qemu-img and dissect: whatever reads the VMDK must find every layer where the table says."""

import hashlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from dissect.hypervisor.disk.vmdk import VMDK
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuild.disk import gpt, vmdk
from imagebuild.errors import DiskError

needs_qemu_img = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")


def _layers(directory: Path, *pages: int) -> list[vmdk.DiskLayer]:
    directory.mkdir()
    chance = random.Random(7)
    layers = []
    for number, count in enumerate(pages):
        content = chance.randbytes(4096) * count
        path = directory / f"{number}.erofs"
        path.write_bytes(content)
        layers.append(vmdk.DiskLayer("sha256:" + hashlib.sha256(content + b"%d" % number).hexdigest(), path))
    return layers


def _image_disk(tmp_path: Path, *pages: int) -> tuple[list[vmdk.DiskLayer], Path]:
    layers = _layers(tmp_path / "layers", *pages)
    (tmp_path / "disk").mkdir()
    return layers, vmdk.image_disk(layers, tmp_path / "disk")


def _dissect(disk: Path) -> bytes:
    stream = VMDK(disk)
    # Not .read(): its buffer asks for what is beyond the end of a disk that is no multiple of 8 KiB.
    content: bytes = stream.read_sectors(0, stream.sector_count)
    return content


def _expect_layers(content: bytes, layers: list[vmdk.DiskLayer], at: int = 1 << 20) -> None:
    for layer in layers:
        expected = layer.path.read_bytes()
        assert content[at : at + len(expected)] == expected
        at += len(expected)
    assert content[-512:][:8] == b"EFI PART"


@needs_qemu_img
@pytest.mark.parametrize("pages", [(1,), (3, 1, 40), (1,) * 127, (1,) * 253], ids=["one", "three", "127", "253"])
def test_qemu_reads_every_layer(pages: tuple[int, ...], tmp_path: Path) -> None:
    layers, disk = _image_disk(tmp_path, *pages)
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", disk]))
    assert info["format"] == "vmdk"
    assert info["virtual-size"] == (1 << 20) + 4096 * sum(pages) + (40 if len(pages) <= 128 else 72) * 512
    subprocess.run(["qemu-img", "check", disk], check=True, capture_output=True)
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, raw], check=True)
    _expect_layers(raw.read_bytes(), layers)
    if shutil.which("sfdisk"):
        dump = subprocess.check_output(["sfdisk", "-d", raw], text=True)
        assert [gpt.layer_name(layer.diff_id) for layer in layers] == [
            line.split('name="')[1].split('"')[0] for line in dump.splitlines() if "name=" in line
        ]
        assert all(str(gpt.layer_guid(layer.diff_id)).upper() in dump for layer in layers)


def test_dissect_reads_every_layer(tmp_path: Path) -> None:
    layers, disk = _image_disk(tmp_path, 2, 5, 1)
    _expect_layers(_dissect(disk), layers)


def test_equal_layers_make_equal_disks(tmp_path: Path) -> None:
    layers = _layers(tmp_path / "layers", 2, 3)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        vmdk.image_disk(layers, tmp_path / name)
    for name in sorted(os.listdir(tmp_path / "a")):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_nothing_is_copied(tmp_path: Path) -> None:
    layers, disk = _image_disk(tmp_path, 1000, 1000)
    own = sum(entry.lstat().st_blocks * 512 for entry in disk.parent.iterdir())
    assert own < 64 << 10
    assert (disk.parent / "layer-001.erofs").samefile(layers[0].path)


@needs_qemu_img
def test_one_disk_per_layer(tmp_path: Path) -> None:
    layers = _layers(tmp_path / "layers", 2, 3)
    (tmp_path / "disks").mkdir()
    for layer, disk in zip(layers, vmdk.layer_disks(layers, tmp_path / "disks"), strict=True):
        subprocess.run(["qemu-img", "convert", "-O", "raw", disk, tmp_path / "raw"], check=True)
        assert (tmp_path / "raw").read_bytes() == layer.path.read_bytes() == _dissect(disk)


def test_what_makes_no_disk_is_refused(tmp_path: Path) -> None:
    diff_ids = [f"sha256:{n:032x}{n:032x}" for n in range(256)]
    with pytest.raises(DiskError, match="no multiple of 4096"):
        vmdk.plan_image_disk([(diff_ids[1], 4097)])
    with pytest.raises(DiskError, match="no multiple of 4096"):
        vmdk.plan_image_disk([(diff_ids[1], 0)])
    with pytest.raises(DiskError, match="appears twice"):
        vmdk.plan_image_disk([(diff_ids[1], 4096), (diff_ids[1], 4096)])
    plan = vmdk.plan_image_disk([(diff_id, 4096) for diff_id in diff_ids])
    with pytest.raises(DiskError, match="holds 255"):
        gpt.primary(plan.partitions, plan.sectors)
    with pytest.raises(DiskError, match="no name"):
        vmdk.flat('a"b', 8)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 1 << 24), min_size=1, max_size=127))
def test_every_plan_adds_up(pages: list[int]) -> None:
    layers = [(f"sha256:{n:032x}{n:032x}", size * 4096) for n, size in enumerate(pages)]
    plan = vmdk.plan_image_disk(layers)
    assert plan.sectors == sum(extent.sectors for extent in plan.extents)
    assert plan.sectors % 8 == 0
    assert [partition.sectors * 512 for partition in plan.partitions] == [size for _, size in layers]
    gpt.primary(plan.partitions, plan.sectors)
    gpt.backup(plan.partitions, plan.sectors)
    assert plan.descriptor.index("CID=") < plan.descriptor.index("parentCID=") < 10 << 10
