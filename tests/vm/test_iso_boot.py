"""ISOs and OVAs in machines: both firmwares, as CD-ROM and as disk, with the devices of a VM on vSphere."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from imagebuild.boot.kernel import choose
from imagebuild.cli import main as cli

BOOT_SECONDS = 240  # a boot takes 5 to 15 on an idle machine without KVM
MAC = "52:54:00:12:34:56"
OVMF = Path("/usr/share/OVMF")
PICO_LIMIT = 14_000_000
QEMU = ("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "tcg",
        "-cpu", "max,la57=off,svm=off", "-m", "256", "-machine", "pc", "-serial", "stdio",
        "-netdev", "user,id=net", "-device", f"vmxnet3,netdev=net,mac={MAC},romfile=")  # fmt: skip
UEFI = ("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.fd",
        "-drive", f"if=pflash,unit=1,format=raw,snapshot=on,file={OVMF}/OVMF_VARS_4M.fd")  # fmt: skip
CD = ("-device", "pvscsi,id=scsi", "-device", "ide-cd,drive=boot,bootindex=0")
PVSCSI_DISK = ("-device", "pvscsi,id=scsi", "-device", "scsi-hd,bus=scsi.0,drive=boot,bootindex=0")
# Debian 12's OVMF has no pvscsi driver (EDK II switched it off); vSphere's own firmware has.
VIRTIO_DISK = ("-device", "pvscsi,id=scsi", "-device", "virtio-scsi-pci,id=other",
               "-device", "scsi-hd,bus=other.0,drive=boot,bootindex=0")  # fmt: skip
needs_ovmf = pytest.mark.skipif(not OVMF.is_dir(), reason="ovmf is not installed")

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]


def boot(medium: Path, attach: Sequence[str], *more: str, kind: str = "raw") -> str:
    """What the console shows until the machine has switched itself off; fails if it does not."""
    drive = ("-drive", f"if=none,id=boot,format={kind},readonly=on,file={medium}")
    begin = time.monotonic()
    done = subprocess.run([*QEMU, *drive, *attach, *more], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=BOOT_SECONDS, check=False)
    console = done.stdout.decode("utf-8", "replace").replace("\r", "")
    assert done.returncode == 0, console
    assert "Power down" in console, f"ended after {time.monotonic() - begin:.0f} s\n{console}"
    return console


def make(command: str, path: Path, image: str, spec: dict[str, Any] | None = None, *options: str) -> Path:
    """An ISO or OVA, made as a user makes it."""
    words = [command, "-o", str(path), *(["--image", image] if image else []), *options]
    if spec:
        given = path.with_suffix(".json")
        given.write_text(json.dumps(spec))
        words += ["--spec", str(given)]
    assert cli.main(words) == 0
    return path


def shell(script: str, **more: Any) -> dict[str, Any]:
    return {"process": {"args": ["sh", "-c", script]}, **more}


@pytest.fixture(scope="module")
def image(home: Path, demo_layout: Path) -> str:
    return f"oci:{demo_layout}:demo"


@pytest.fixture(scope="module")
def hello(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("iso", tmp_path_factory.mktemp("iso") / "hello.iso", image)


@pytest.mark.parametrize(("firmware", "attach"), [
    pytest.param((), CD, id="bios-cd"),
    pytest.param((), PVSCSI_DISK, id="bios-disk"),
    pytest.param(UEFI, CD, id="uefi-cd", marks=needs_ovmf),
    pytest.param(UEFI, VIRTIO_DISK, id="uefi-disk", marks=needs_ovmf),
])
def test_the_container_runs_from_the_iso(hello: Path, firmware: Sequence[str], attach: Sequence[str]) -> None:
    console = boot(hello, attach, *firmware)
    assert "Hello from a container that is a virtual machine." in console
    assert "tether: the container ended with exit code 0" in console


@needs_ovmf
def test_the_iso_boots_from_a_sata_drive_under_uefi(home: Path, hello: Path) -> None:
    if choose(home).option("SATA_AHCI") != "y":
        pytest.skip("this kernel has no AHCI: run make pico")
    attach = ("-machine", "q35", "-device", "ide-cd,drive=boot,bootindex=0")
    assert "exit code 0" in boot(hello, attach, *UEFI)


def test_output_and_exit_code_reach_the_console(image: str, tmp_path: Path) -> None:
    iso = make("iso", tmp_path / "a.iso", image, shell("echo to-stdout; echo to-stderr >&2; exit 3"))
    console = boot(iso, CD)
    assert "to-stdout\n" in console
    assert "to-stderr\n" in console
    assert "tether: the container ended with exit code 3\n" in console


def test_a_signal_reaches_the_console(image: str, tmp_path: Path) -> None:
    iso = make("iso", tmp_path / "a.iso", image, shell("kill -9 $$"))
    assert "tether: the container was ended by signal 9\n" in boot(iso, CD)


def test_disk_and_network_of_a_vsphere_machine_work_and_the_disk_keeps_its_content(image: str, tmp_path: Path) -> None:
    disk = tmp_path / "top.vmdk"
    assert cli.main(["disk", "new", "32M", str(disk)]) == 0
    interface = {"mac": MAC, "addresses": ["10.0.2.15/24"], "gateway4": "10.0.2.2"}
    script = "echo seen:$(cat /kept 2>/dev/null); echo written > /kept; ip -4 -o addr; ip route"
    layers = [{"disk": {"file": f"vch/layers/{number:03}.erofs"}} for number in range(1, 1 + layer_count(image))]
    spec = shell(script, network={"hostname": "web", "interfaces": [interface]},
                 root={"layers": layers, "writable": {"serial": "top"}})
    iso = make("iso", tmp_path / "a.iso", image, spec)
    attach = (*CD, "-drive", f"if=none,id=top,format=vmdk,file={disk}", "-device",
              "scsi-hd,bus=scsi.0,drive=top,serial=top")  # fmt: skip
    first, second = boot(iso, attach), boot(iso, attach)
    assert "seen:\n" in first
    assert "seen:written\n" in second
    assert "10.0.2.15/24" in first
    assert "default via 10.0.2.2" in first


def test_a_variable_of_the_hypervisor_replaces_the_spec_but_not_the_layers(
    image: str, hello: Path, tmp_path: Path
) -> None:
    layers = [{"disk": {"file": f"vch/layers/{number:03}.erofs"}} for number in range(1, 1 + layer_count(image))]
    spec = shell("echo deployed otherwise", id="x", network={"hostname": "x"}, root={"layers": layers})
    (tmp_path / "spec").write_text(json.dumps(spec))
    console = boot(hello, CD, "-fw_cfg", f"name=opt/guestinfo/vch.spec,file={tmp_path}/spec")
    assert "deployed otherwise\n" in console


def layer_count(image: str) -> int:
    from imagebuild.cli.common import user_store
    from imagebuild.transfer.pulling import pull

    return len(pull(image, store=user_store()).layers)


@pytest.mark.parametrize(("spec", "said"), [
    (shell("true", root={"layers": [{"disk": {"file": "vch/layers/077.erofs"}}]}), "vch/layers/077.erofs"),
    ({"process": {"args": ["no-such-program"]}}, "executable file not found in $PATH"),
])
def test_what_fails_is_said_in_one_sentence_before_the_power_off(
    image: str, tmp_path: Path, spec: dict[str, Any], said: str
) -> None:
    console = boot(make("iso", tmp_path / "a.iso", image, spec), CD)
    (line,) = [line for line in console.splitlines() if line.startswith("tether: ")]
    assert said in line
    assert "(" in line, "a remedy"


def test_two_builds_in_two_folders_are_identical_and_small(home: Path, image: str, tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        digests.add(hashlib.sha256(make("iso", tmp_path / name / "a.iso", "").read_bytes()).hexdigest())
    assert len(digests) == 1
    if choose(home).name == "pico":
        assert (tmp_path / "one/a.iso").stat().st_size <= PICO_LIMIT


def test_an_ova_boots_again_after_unpacking(image: str, tmp_path: Path) -> None:
    with tarfile.open(make("ova", tmp_path / "hello.ova", image)) as tar:
        tar.extractall(tmp_path)
    for line in (tmp_path / "hello.mf").read_text().splitlines():
        name, digest = line.removeprefix("SHA256(").split(")= ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    console = boot(tmp_path / "hello-disk1.vmdk", PVSCSI_DISK, kind="vmdk")
    assert "Hello from a container that is a virtual machine." in console
    assert "exit code 0" in console


@needs_ovmf
def test_an_ova_with_a_cd_boots_again_after_unpacking(image: str, tmp_path: Path) -> None:
    with tarfile.open(make("ova", tmp_path / "hello.ova", image, None, "--drive", "cd")) as tar:
        tar.extractall(tmp_path)
    assert "exit code 0" in boot(tmp_path / "hello.iso", CD, *UEFI)
