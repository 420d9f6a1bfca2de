"""New ext4 disks, judged by e2fsck and debugfs, and by Linux itself where this test may mount (root)."""

import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagebuild import crc32c
from imagebuild.disk.ext4 import make_ext4
from imagebuild.disk.ext4_encode import contents
from imagebuild.disk.ext4_layout import BLOCK, GROUP, MAX_SIZE, MIN_JOURNALLED_SIZE, MIN_SIZE, plan
from imagebuild.errors import DiskError

UUID = bytes(range(16))
MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
SMALL = (MIN_SIZE, 2 * MIB, MIN_JOURNALLED_SIZE - BLOCK, MIN_JOURNALLED_SIZE, 127 * MIB, 128 * MIB)
SIZES = (*SMALL, 128 * MIB + BLOCK, 148 * MIB, 511 * MIB, 512 * MIB, GIB + 12345, 8 * GIB, 100 * GIB, 300 * GIB)

needs_e2fsprogs = pytest.mark.skipif(not shutil.which("e2fsck"), reason="needs e2fsprogs")


def _make(path: Path, size: int, label: str = "data", *, journal: bool = True) -> Path:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        make_ext4(fd, size, label, UUID, journal=journal)
    finally:
        os.close(fd)
    return path


def _fsck(path: Path) -> None:
    done = subprocess.run(["e2fsck", "-fn", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_crc32c_is_castagnolis() -> None:
    assert crc32c.crc32c(b"123456789") == 0xE3069283
    assert crc32c.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4


@needs_e2fsprogs
@pytest.mark.parametrize("size", SIZES)
def test_e2fsck_finds_it_clean(size: int, tmp_path: Path) -> None:
    disk = _make(tmp_path / "disk", size)
    assert disk.stat().st_size == size
    assert disk.stat().st_blocks * 512 < 4 * MIB
    _fsck(disk)


@needs_e2fsprogs
@settings(max_examples=40, deadline=None)
@given(st.integers(MIN_SIZE, 40 * GIB))
@example(GROUP * BLOCK * 2 + BLOCK)
@example(GROUP * BLOCK * 4 + 600 * BLOCK)
def test_every_size_is_clean(size: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        _fsck(_make(Path(directory, "disk"), size))


@settings(max_examples=100, deadline=None)
@given(st.integers(MIN_SIZE, MAX_SIZE))
@example(MAX_SIZE)
def test_every_layout_adds_up(size: int) -> None:
    layout = plan(size)
    assert 0 <= size // BLOCK - layout.blocks < layout.overhead(layout.groups) + 50
    groups = range(layout.groups) if layout.groups < 5000 else []
    if groups:
        assert layout.free_blocks == sum(layout.length(group) - layout.used(group) for group in groups)
        assert all(layout.used(group) < layout.length(group) for group in groups)
    assert layout.journal + layout.journal_blocks <= min(GROUP, layout.blocks)


def test_sixteen_tebibytes_take_milliseconds() -> None:
    began = time.process_time()
    written = sum(len(data) for _, data in contents(plan(MAX_SIZE), "huge", UUID))
    assert time.process_time() - began < 2  # 0.1 s on an idle core
    assert written < 20 * MIB


@needs_e2fsprogs
def test_it_has_a_journal_a_label_and_its_uuid(tmp_path: Path) -> None:
    disk = _make(tmp_path / "disk", 4 * GIB, "größe")
    shown = subprocess.run(["dumpe2fs", "-h", disk], capture_output=True, text=True, check=True).stdout
    assert "has_journal" in shown
    assert "Total journal size:       64M" in shown
    assert "00010203-0405-0607-0809-0a0b0c0d0e0f" in shown
    assert "größe" in shown
    assert "Filesystem state:         clean" in shown


@needs_e2fsprogs
@pytest.mark.parametrize("size", SIZES)
def test_it_does_without_a_journal(size: int, tmp_path: Path) -> None:
    disk = _make(tmp_path / "disk", size, journal=False)
    _fsck(disk)
    shown = subprocess.run(["dumpe2fs", "-h", disk], capture_output=True, text=True, check=True).stdout
    assert "has_journal" not in shown


@needs_e2fsprogs
def test_debugfs_writes_and_reads_a_file(tmp_path: Path) -> None:
    disk, content = _make(tmp_path / "disk", 64 * MIB), random.Random(1).randbytes(5 * MIB)
    (tmp_path / "in").write_bytes(content)
    for command in (f"write {tmp_path / 'in'} file", "mkdir directory"):
        subprocess.run(["debugfs", "-w", "-R", command, disk], capture_output=True, check=True)
    subprocess.run(["debugfs", "-R", f"dump file {tmp_path / 'out'}", disk], capture_output=True, check=True)
    assert (tmp_path / "out").read_bytes() == content
    _fsck(disk)


@needs_e2fsprogs
@pytest.mark.parametrize("copy", [1, 3, 5])
def test_a_lost_superblock_is_found_again_in_its_copies(copy: int, tmp_path: Path) -> None:
    disk = _make(tmp_path / "disk", GIB)
    with disk.open("r+b") as file:
        file.write(bytes(3 * BLOCK))
    place = ["-b", str(copy * GROUP), "-B", str(BLOCK)]
    assert subprocess.run(["e2fsck", "-fy", *place, disk], capture_output=True, check=False).returncode == 1
    _fsck(disk)


@needs_e2fsprogs
def test_it_can_be_grown(tmp_path: Path) -> None:
    disk = _make(tmp_path / "disk", 200 * MIB)
    os.truncate(disk, 20 * GIB)
    subprocess.run(["resize2fs", "-f", disk], capture_output=True, check=True)
    _fsck(disk)


def test_an_anonymous_file_will_do_and_old_content_is_gone(tmp_path: Path) -> None:
    try:
        fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
    except OSError:
        pytest.skip("this file system has no anonymous files")
    os.write(fd, b"\xff" * 3 * MIB)
    make_ext4(fd, 2 * MIB, "a", UUID)
    with os.fdopen(fd, "rb", closefd=True) as file:
        found = os.pread(file.fileno(), 3 * MIB, 0)
    assert found == _make(tmp_path / "disk", 2 * MIB, "a").read_bytes()


def test_what_makes_no_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="a file system has"):
        _make(tmp_path / "disk", MIN_SIZE - 1)
    with pytest.raises(DiskError, match="a file system has"):
        _make(tmp_path / "disk", MAX_SIZE + 1)
    with pytest.raises(DiskError, match="at most 16 bytes"):
        _make(tmp_path / "disk", MIN_SIZE, "seventeen letters")
    reader, writer = os.pipe()
    with pytest.raises(DiskError, match="no regular file"):
        make_ext4(writer, MIN_SIZE, "", UUID)
    os.close(reader)
    os.close(writer)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_linux_mounts_it(tmp_path: Path) -> None:
    disk, mount = _make(tmp_path / "disk", 600 * MIB), tmp_path / "mount"
    mount.mkdir()
    if subprocess.run(["mount", "-o", "loop", disk, mount], capture_output=True, check=False).returncode:
        pytest.skip("no loop mounts here")
    try:
        assert os.listdir(mount) == ["lost+found"]
        for number in range(300):
            (mount / f"directory-{number}").mkdir()
            (mount / f"directory-{number}" / "file").write_bytes(bytes([number % 256]) * 100_000)
    finally:
        subprocess.run(["umount", mount], check=True)
    _fsck(disk)
