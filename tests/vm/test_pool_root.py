"""Machines that wait with the root filesystem of their image: who takes one has it to itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import vch
from tests.sample_images import tar_of, write_layout
from tests.vm.run_helpers import gone, machines_of, tcp_port, until_waiting

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def image(home: Path, demo_layout: Path) -> str:
    return f"oci:{demo_layout}:demo"


@pytest.fixture(scope="module")
def rooted(image: str) -> Iterator[vch.Pool]:
    with vch.Pool(refill_seconds=0.1, with_root=True) as made:
        with vch.Machine(image, pool=made):
            pass
        yield made



def test_each_has_a_disk_of_its_own(rooted: vch.Pool, image: str) -> None:
    for _ in range(2):
        waiting = until_waiting(rooted)
        with vch.Machine(image, pool=rooted) as machine:
            assert waiting <= set(machines_of(os.getpid()))
            mounted = machine.exec("sh", "-c", "touch /new && grep ' / ' /proc/mounts", check=True).stdout
            assert mounted.startswith("overlay / overlay rw")
            assert [os.fsdecode(change.path) for change in machine.diff()] == ["/new"]
        assert all(gone(pid) for pid in waiting)



def test_it_gets_what_else_it_asks_for(rooted: vch.Pool, image: str) -> None:
    waiting = until_waiting(rooted)
    with tcp_port() as port, vch.Machine(
        image, pool=rooted, volume="rooted-pool:/v", publish=f"127.0.0.1:{port}:80", memory="512m", read_only=True,
        hostname="named", mac_address="02:11:22:33:44:55",
    ) as machine:
        assert waiting <= set(machines_of(os.getpid()))
        script = "touch /v/f && hostname && cat /sys/class/net/eth0/address && touch /x"
        told = machine.exec("sh", "-c", script)
        assert told.stdout.splitlines() == ["named", "02:11:22:33:44:55"]
        assert "Read-only file system" in told.stderr



def test_another_image_takes_none_of_them(rooted: vch.Pool, tmp_path: Path) -> None:
    waiting = until_waiting(rooted)
    write_layout(tmp_path, {"other": [tar_of({"which": b"the other one"})]})
    with vch.Machine(f"oci:{tmp_path}:other", pool=rooted) as machine:
        assert machine.stat("/which").size == len(b"the other one")
        assert waiting <= set(machines_of(os.getpid()))
