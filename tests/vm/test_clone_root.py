"""Templates of an image: that clones of them begin with their root, and with nothing that another has left."""

from __future__ import annotations

import json
import os
import re
from hashlib import md5
from pathlib import Path

import pytest

from imagebuild.demo import demo_layers, fetch_busybox
from imagebuild.oci.compose import LayerTar, write_layout
from tests.vm.conftest import Vch
from vch import Machine

pytestmark = pytest.mark.vm


@pytest.fixture
def image(home: Path, demo_layout: Path) -> str:
    return f"oci:{demo_layout}:demo"


WITH_ITS_ROOT = b", with its root"
TRACES = "ls -a / /tmp /etc | md5sum; df -k / | tail -1; echo mine > /traces; rm /etc/passwd; echo x > /usr/new"


def test_the_third_run_of_an_image_finds_its_root_and_no_traces_of_others(
    vch: Vch, image: str, own_templates: Path
) -> None:
    runs = [vch("run", "-D", image, "sh", "-c", TRACES) for _ in range(5)]
    assert [WITH_ITS_ROOT in run.stderr for run in runs] == [False, True, True, True, True]
    said = [run.stdout.split() for run in runs]
    assert said[0]
    assert all(one == said[0] for one in said), said
    rooted = [one for one in json.loads(vch("template", "ls", "--json").stdout) if one["drives"]]
    assert len(rooted) == 1
    again = vch("run", "-D", "--read-only", "--tmpfs", "/t", "-v", "rooted:/v", image, "sh", "-c",
                "touch /x 2>&1; touch /t/x /v/x && cat /etc/hostname /proc/mounts")
    assert WITH_ITS_ROOT in again.stderr
    name, *mounts = again.stdout.decode().splitlines()[1:]
    assert again.stdout.startswith(b"touch: /x: Read-only file system")
    assert re.fullmatch("[0-9a-f]{12}", name)
    assert [line.split()[3].startswith("ro") for line in mounts if line.split()[1] in ("/", "/etc/hosts")] == [True] * 2


def test_its_network_is_its_own(vch: Vch, image: str, own_templates: Path) -> None:
    """What is up already when it wakes gets the MAC address of the machine, and what Linux makes of that."""
    # A link-local address comes a moment after the start, and is asked about for one to two seconds (RFC 4862, 5.4).
    settled = "ip addr show dev eth0 | grep fe80: | grep -vq tentative"
    ipv6 = "[ -d /proc/sys/net/ipv6 ]"
    wait = f"for _ in $(seq 100); do sleep 0.1; {settled} && break; done"
    show = f"if {ipv6}; then {wait}; fi; ip -o addr show dev eth0; ip route; ip -6 route; " \
        "cat /sys/class/net/eth0/address"
    cold = vch("run", "--cold", "--mac-address", "02:01:02:03:04:05", image, "sh", "-c", show)
    for _ in range(3):
        run = vch("run", "-D", "--mac-address", "02:01:02:03:04:05", image, "sh", "-c", show)
        assert sorted(run.stdout.splitlines()) == sorted(cold.stdout.splitlines())
    assert WITH_ITS_ROOT in run.stderr
    moved = vch("run", "-D", "--ip", "10.9.8.7", image, "sh", "-c", "ip -o -4 addr show dev eth0")
    assert b"10.9.8.7/24" in moved.stdout


def test_what_a_clone_wrote_is_its_own(home: Path, image: str, own_templates: Path) -> None:
    """Two at the same time, each with the disk that its template left: what one writes, also much, the other lacks."""
    with Machine(image):
        pass  # its first use
    with Machine(image) as one, Machine(image) as other:
        for number, machine in enumerate((one, other)):
            machine.exec("sh", "-c", f"yes {number} | head -c 4000000 > /big; sync", check=True)
        for number, machine in enumerate((one, other)):
            content = f"{number}\n".encode() * 2000000
            assert machine.exec("md5sum", "/big", check=True).stdout.split()[0] == md5(content).hexdigest()
            assert [change.path for change in machine.diff()] == [b"/big"]


def test_an_image_that_changes_has_another_template(vch: Vch, tmp_path: Path, own_templates: Path) -> None:
    for version in ("one", "two"):
        top = LayerTar().file("version", version.encode())
        write_layout(tmp_path / "image", [*demo_layers(fetch_busybox()), top.tar()], {"Cmd": ["hello"]}, tag="x")
        for _ in range(3):
            assert vch("run", f"oci:{tmp_path}/image:x", "cat", "/version").stdout == version.encode()


def test_a_template_whose_disk_is_damaged(vch: Vch, image: str, own_templates: Path) -> None:
    for _ in range(2):
        vch("run", image, "true")
    (top,) = own_templates.glob("*/top")
    os.truncate(top, 4096)
    run = vch("run", "-D", image, "echo", "x")
    assert run.stdout == b"x\n"
    assert WITH_ITS_ROOT not in run.stderr
    assert not top.exists()
