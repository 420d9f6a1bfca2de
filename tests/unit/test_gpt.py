"""Partition tables, judged by sfdisk and sgdisk where they are there, and by this file's own reading of the layout."""

import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from imagebuild.disk import gpt
from imagebuild.errors import DiskError

DIFF_ID = "sha256:" + "0123456789abcdef" * 4


def _partitions(count: int) -> list[gpt.Partition]:
    return [
        gpt.Partition(2048 + 8 * n, 8, gpt.layer_guid(f"sha256:{n:064x}"[:7] + f"{n:032x}" * 2), f"layer-{n}")
        for n in range(count)
    ]


def _disk(partitions: list[gpt.Partition], sectors: int, path: Path) -> Path:
    with path.open("wb") as file:
        file.write(gpt.primary(partitions, sectors))
        file.seek((sectors - gpt.backup_sectors(len(partitions))) * gpt.SECTOR)
        file.write(gpt.backup(partitions, sectors))
    return path


def test_a_layers_guid_shows_its_diff_id() -> None:
    guid = gpt.layer_guid(DIFF_ID)
    assert str(guid).startswith("01234567-89ab-8def-")
    assert guid.version == 8
    assert guid.variant == uuid.RFC_4122
    assert gpt.layer_name(DIFF_ID) == "layer-0123456789abcdef0123456789abcd"
    assert len(gpt.layer_name(DIFF_ID)) == gpt.NAME_UNITS


@pytest.mark.parametrize("diff_id", ["", "sha256:", "sha256:abc", "sha256:" + "g" * 64])
def test_what_is_no_digest_is_refused(diff_id: str) -> None:
    with pytest.raises(DiskError, match="not a digest"):
        gpt.layer_guid(diff_id)


def test_sizes_are_those_of_the_specification() -> None:
    assert len(gpt.primary([], 4096)) == 34 * 512
    assert len(gpt.backup([], 4096)) == 33 * 512
    assert len(gpt.backup(_partitions(129), 4096)) == 65 * 512


@pytest.mark.skipif(not shutil.which("sfdisk"), reason="needs sfdisk")
@pytest.mark.parametrize("count", [1, 5, 127, 128, 129, 255])
def test_sfdisk_reads_it(count: int, tmp_path: Path) -> None:
    partitions = _partitions(count)
    disk = _disk(partitions, 8192, tmp_path / "disk")
    dump = subprocess.run(["sfdisk", "-d", disk], capture_output=True, text=True, check=True)
    assert not dump.stderr
    lines = [line for line in dump.stdout.splitlines() if "start=" in line]
    assert len(lines) == count
    for line, partition in zip(lines, partitions, strict=True):
        assert f"uuid={str(partition.guid).upper()}" in line
        assert f'name="{partition.name}"' in line
        assert f"start={partition.first}," in line.replace(" ", "")
    verify = subprocess.run(["sfdisk", "--verify", disk], capture_output=True, text=True, check=True)
    assert "No errors" in verify.stdout


@pytest.mark.skipif(not shutil.which("sgdisk"), reason="needs sgdisk")
def test_the_backup_repairs_a_lost_primary(tmp_path: Path) -> None:
    disk = _disk(_partitions(3), 8192, tmp_path / "disk")
    sound = disk.read_bytes()
    assert "No problems found" in subprocess.check_output(["sgdisk", "-v", disk], text=True)
    with disk.open("r+b") as file:
        file.seek(gpt.SECTOR)
        file.write(bytes(gpt.SECTOR))
    subprocess.run(["sgdisk", "-e", disk], capture_output=True, check=True, input=b"")
    assert disk.read_bytes()[512:1024] == sound[512:1024]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DiskError, match="holds 255"):
        gpt.primary(_partitions(256), 1 << 20)
    with pytest.raises(DiskError, match="overlaps"):
        gpt.primary([gpt.Partition(10, 8, uuid.uuid4(), "a")], 4096)
    one, other = gpt.Partition(2048, 9, uuid.uuid4(), "a"), gpt.Partition(2056, 8, uuid.uuid4(), "b")
    with pytest.raises(DiskError, match="overlaps"):
        gpt.primary([one, other], 4096)
    with pytest.raises(DiskError, match="do not hold"):
        gpt.backup([one], 2060)
