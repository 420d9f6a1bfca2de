"""What the agent takes for a disk that is there."""

import socket
from pathlib import Path

from tether.rootfs.disks import opens


def test_a_node_without_its_device_is_not_there_yet(tmp_path: Path) -> None:
    node = tmp_path / "sda1"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(node))  # open(2) of a socket says ENXIO, as it does of a node whose device is still to come
        assert not opens(str(node))


def test_a_node_with_its_device_is_there(tmp_path: Path) -> None:
    (tmp_path / "sda").write_bytes(b"")
    assert opens(str(tmp_path / "sda"))


def test_no_node_is_not_there(tmp_path: Path) -> None:
    assert not opens(str(tmp_path / "sdb"))
