"""The root file system: every kind of layer and disk it can be made of, checked layers, kernel parameters."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagebuild.disk import vmdk
from imagebuild.layer.layer import convert
from imagebuild.oci.compose import LayerTar
from tests.vm.harness import Container, container
from tether.spec import Disk, Layer, Root, Sysctl, Verity, Volume
from vch.errors import GuestError
from vch.options.spec_plan import IMAGE_SERIAL, TOP_SERIAL
from vch.qemu.config import Drive

pytestmark = pytest.mark.vm

MIB = 1 << 20
SECTOR = 512
GOOD, BAD = b"good " * 4000, b"bad  " * 4000  # several blocks each, which nothing else in the layer contains
IN_BLOCKS = 16384  # what EROFS keeps in one piece of them; the tail stands with the inode
BUSYBOX = Path("/bin/busybox")
SYSCTLS = (
    Sysctl(key="net.core.somaxconn", value="77"),
    Sysctl(key="net/ipv4/conf/eth0/forwarding", value="1"),
    Sysctl(key="kernel.sem", value="250 32000 100 128"),
)


@pytest.fixture(scope="module")
def image(home: Path, demo_layout: Path) -> str:
    """The demo image by its layout."""
    return f"oci:{demo_layout}:demo"


def disk(folder: Path, name: str, raw: Path) -> Path:
    """A VMDK descriptor beside the raw file that is its content."""
    size = -(-raw.stat().st_size // SECTOR) * SECTOR
    with raw.open("r+b") as file:
        file.truncate(size)
    path = folder / f"{name}.vmdk"
    path.write_text(vmdk.flat(raw.name, size // SECTOR))
    return path


def checked_layer(folder: Path, name: str, damage: bytes = b"") -> tuple[Path, Verity]:
    """A layer with a hash tree; where `damage` stands in it, a bit is turned."""
    tar = LayerTar().directory(name).file(f"{name}/good", GOOD).file(f"{name}/bad", BAD)
    raw = folder / f"{name}.erofs"
    made = convert([tar.tar()], destination=raw, verity=True)
    if damage:
        content = bytearray(raw.read_bytes())
        content[content.index(damage) + len(damage) // 2] ^= 1
        raw.write_bytes(content)
    return disk(folder, name, raw), Verity(root_hash=str(made.verity_root), data_size=made.image_size)


def tree(folder: Path, name: str) -> Path:
    """A folder with one file in it."""
    made = folder / f"{name}-tree"
    (made / name).mkdir(parents=True)
    (made / name / "file").write_text(f"from {name}\n")
    return made


def squashfs(folder: Path) -> Path:
    raw = folder / "squash.raw"
    subprocess.run(["mksquashfs", tree(folder, "squash"), raw, "-quiet", "-no-progress", "-all-root"], check=True)
    return disk(folder, "squash", raw)


def ext4(folder: Path, name: str, content: Path, size: int, label: str = "") -> Path:
    raw = folder / f"{name}.raw"
    options = ["-q", "-t", "ext4", "-E", "root_owner=0:0", "-L", label, "-d", str(content)]
    command = ["mke2fs", *options, str(raw), str(size // 1024)]
    subprocess.run(command, check=True)
    return disk(folder, name, raw)


@pytest.fixture(scope="module")
def mixed(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A root of layers of all kinds: partitions of one disk, and disks of their own."""
    for program in ("mksquashfs", "mke2fs"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    folder = tmp_path_factory.mktemp("disks")
    whole, whole_hash = checked_layer(folder, "whole")
    damaged, damaged_hash = checked_layer(folder, "damaged", BAD[:IN_BLOCKS])
    disks = {"whole": whole, "damaged": damaged, "squash": squashfs(folder),
             "ext4": ext4(folder, "ext4", tree(folder, "ext4"), 4 * MIB)}
    root = Root(
        layers=(
            Layer(disk=Disk(serial=IMAGE_SERIAL, partition=1)),
            Layer(disk=Disk(serial="squash"), filesystem="squashfs"),
            Layer(disk=Disk(scsi="0:0:0:5"), filesystem="ext4"),  # the last of six disks
            Layer(disk=Disk(serial="whole"), verity=whole_hash),
            Layer(disk=Disk(serial="damaged"), verity=damaged_hash),
        ),
        writable=Disk(serial=TOP_SERIAL),
    )
    volume = Volume(disk=Disk(label="by-label"), path=b"/labelled", no_copy=True)
    change = {"root": root, "sysctls": SYSCTLS, "volumes": (volume,)}
    drive = Drive("volume", str(ext4(folder, "volume", tree(folder, "volume"), 4 * MIB, label="by-label")))
    with container(image, "sleep", "100000", change=change, more_disks=disks, more_drives=(drive,)) as made:
        yield made


class TestLayers:
    def test_one_disk_per_layer_of_any_file_system(self, mixed: Container) -> None:
        assert mixed.sh("cat /squash/file /ext4/file").out == "from squash\nfrom ext4\n"

    def test_what_mke2fs_made_is_not_the_images(self, mixed: Container) -> None:
        assert "lost+found" not in mixed.sh("ls -a /").out.split()

    def test_a_checked_layer_is_read_as_any_other(self, mixed: Container) -> None:
        assert mixed.sh("cat /whole/good").out.encode() == GOOD

    def test_a_bit_that_was_turned_is_an_error_and_never_content(self, mixed: Container) -> None:
        assert mixed.sh("cat /damaged/good").out.encode() == GOOD
        read = mixed.sh("cat /damaged/bad")
        assert read.code != 0
        assert "Input/output error" in read.err
        assert b"bae" not in read.out.encode()
        assert BAD.startswith(read.out.encode())


def test_a_volume_is_found_by_its_label(mixed: Container) -> None:
    assert mixed.sh("cat /labelled/volume/file; echo x > /labelled/y && ls /labelled").out == "from volume\nvolume\ny\n"


class TestSysctl:
    def test_parameters_are_set_before_the_process_runs(self, mixed: Container) -> None:
        wanted = "cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/conf/eth0/forwarding /proc/sys/kernel/sem"
        assert mixed.sh(wanted).out == "77\n1\n250\t32000\t100\t128\n"


def refused(image: str, **change: object) -> GuestError:
    """What becomes of a spec with this in it."""
    with container("--network", "none", image, "true", change=change, start=False) as lost:
        with pytest.raises(GuestError) as raised:
            lost.start()
        return raised.value


def test_a_parameter_that_the_kernel_does_not_have_is_named(image: str) -> None:
    error = refused(image, sysctls=(Sysctl(key="net.core.nothing", value="1"),))
    assert (error.fault.step, error.fault.errno) == ("set kernel parameters", "ENOENT")
    assert "net.core.nothing" in error.fault.object


def test_a_layer_that_has_another_root_hash_is_refused(image: str) -> None:
    with container("--network", "none", "--verity", image, "true", start=False) as lost:
        layers = lost.spec.root.layers
        assert layers[0].verity is not None
        wrong = layers[0].but(verity=layers[0].verity.but(root_hash="0" * 64))
        lost.spec = lost.spec.but(root=lost.spec.root.but(layers=(wrong, *layers[1:])))
        with pytest.raises(GuestError) as raised:
            lost.start()
        fault = raised.value.fault
        assert fault.step == "mount layers"
        assert "does not have its root hash" in fault.text


def root_content(folder: Path) -> Path:
    """A root that has busybox and nothing else."""
    content = folder / "content"
    (content / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, content / "bin/busybox")
    (content / "bin/sh").symlink_to("busybox")
    return content


def file_of(raw: Path, path: str) -> str:
    """A file of an ext4 disk that was unmounted in good order."""
    subprocess.run(["e2fsck", "-fn", raw], check=True, capture_output=True)
    shown = subprocess.run(["dumpe2fs", "-h", raw], check=True, capture_output=True, text=True).stdout
    assert "needs_recovery" not in shown
    return subprocess.run(["debugfs", "-R", f"cat {path}", raw], check=True, capture_output=True, text=True).stdout


WRITES = "echo written > /file; awk '$2 == \"/\" {print $3}' /proc/mounts"


def test_one_disk_that_is_the_whole_root(image: str, tmp_path: Path) -> None:
    """As VIC had it: everything on one ext4 disk, which the container writes in place and which is clean afterwards."""
    drive = Drive("whole", str(ext4(tmp_path, "whole", root_content(tmp_path), 24 * MIB)))
    root = Root(layers=(), whole=Disk(serial="whole"))
    with container("--network", "none", image, "sh", "-c", WRITES, change={"root": root}, more_drives=(drive,)) as made:
        assert made.wait().out == "ext4\n"
        made.machine.power_off()
    assert file_of(tmp_path / "whole.raw", "/file") == "written\n"


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
def test_a_chain_of_disks_and_a_disk_below_a_tmpfs(image: str, tmp_path: Path) -> None:
    """The same disk as a parent that nobody changes: below a VMDK child, and as the one layer under memory."""
    parent = ext4(tmp_path, "parent", root_content(tmp_path), 24 * MIB)
    before = (tmp_path / "parent.raw").read_bytes()
    child = tmp_path / "child.vmdk"
    create = ["qemu-img", "create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", str(parent), str(child)]
    subprocess.run(create, check=True)
    root = Root(layers=(), whole=Disk(serial="child"))
    drive = Drive("child", str(child))
    with container("--network", "none", image, "sh", "-c", WRITES, change={"root": root}, more_drives=(drive,)) as made:
        assert made.wait().out == "ext4\n"
        made.machine.power_off()
    subprocess.run(["qemu-img", "convert", "-O", "raw", child, tmp_path / "child.raw"], check=True)
    assert file_of(tmp_path / "child.raw", "/file") == "written\n"

    root = Root(layers=(Layer(disk=Disk(serial="parent"), filesystem="ext4"),), read_only=True)
    script = f"{WRITES}; ls /"
    with container("--network", "none", image, "sh", "-c", script, change={"root": root},
                   more_disks={"parent": parent}) as made:
        done = made.wait()
        assert done.out.startswith("overlay\n")
        assert "lost+found" not in done.out
        assert "Read-only file system" in done.err
    assert (tmp_path / "parent.raw").read_bytes() == before
