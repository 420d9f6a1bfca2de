"""vsock by the host's kernel, as far as a host without /dev/vhost-vsock can show it."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tether.link.endpoint import Endpoint
from tether.link.hello import APPLIANCE
from tether.link.reactor import Reactor
from tether.link.wire import Wire
from vch.errors import HostError
from vch.qemu import config as qemu
from vch.qemu.config import Accelerator, BootFiles, Channels, KernelVsock, LinkKind, MachineConfig
from vch.vsock.kernel import HeldVsock, KernelLine, claim_cid, open_kernel_vsock

CONFIG = MachineConfig(name="m", accelerator=Accelerator.TCG, memory_mib=256, cpus=1,
                       boot=BootFiles(Path("/k"), None, ("quiet",)), link=LinkKind.VSOCK)  # fmt: skip


def test_a_host_without_it(tmp_path: Path) -> None:
    assert open_kernel_vsock(tmp_path / "nothing") is None


def test_a_device_that_is_none_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "device").touch()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="VCH_LINK=virtio-serial"):
        open_kernel_vsock(tmp_path / "device")
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_cid_that_is_taken_is_not_asked_for_twice_in_a_row() -> None:
    asked: list[int] = []

    def ioctl(fd: int, request: int, argument: bytes) -> None:
        assert (fd, request) == (7, 0x4008AF60)
        asked.append(struct.unpack("=Q", argument)[0])
        if len(asked) < 4:
            raise OSError(errno.EADDRINUSE, "taken")

    assert claim_cid(7, ioctl) == asked[3]
    assert len(set(asked)) == 4
    assert all(cid > 2 for cid in asked)


def test_no_cid_is_free_or_the_kernel_refuses() -> None:
    def taken(_fd: int, _request: int, _argument: bytes) -> None:
        raise OSError(errno.EADDRINUSE, "taken")

    def refused(_fd: int, _request: int, _argument: bytes) -> None:
        raise OSError(errno.EPERM, "no")

    with pytest.raises(OSError, match="no CID is free"):
        claim_cid(7, taken)
    with pytest.raises(PermissionError):
        claim_cid(7, refused)


def test_qemu_gets_the_device_and_the_guest_the_port() -> None:
    config = CONFIG._replace(kernel_vsock=KernelVsock(fd=9, cid=77, port=5999))
    words = qemu.command_line(config, Channels(3, 4, 5))
    assert "vhost-vsock-pci,guest-cid=77,vhostfd=9" in words
    assert words[words.index("-append") + 1] == "quiet tether.link=vsock:2:5999"
    assert 9 in qemu.inherited(config, Channels(3, 4, 5))


def test_without_it_the_link_is_a_backend_that_shares_memory() -> None:
    words = qemu.command_line(CONFIG, Channels(3, 4, 5))
    assert "vhost-user-vsock-pci,chardev=link" in words
    assert "memory-backend-memfd,id=ram,size=256M,share=on" in words
    assert words[words.index("-append") + 1] == "quiet tether.link=vsock:2:5180"


class Listener:
    """An AF_VSOCK listener, as far as the line sees it: connections of these CIDs and ports are waiting."""

    def __init__(self, *callers: tuple[int, int]) -> None:
        self._bell, self._ring = os.pipe()
        self.ends: list[socket.socket] = []
        self._waiting = list(callers)
        os.write(self._ring, b"x")

    def fileno(self) -> int:
        return self._bell

    def accept(self) -> tuple[socket.socket, tuple[int, int]]:
        if not self._waiting:
            raise BlockingIOError
        near, far = socket.socketpair()
        self.ends.append(far)
        return near, self._waiting.pop(0)

    def close(self) -> None:
        os.close(self._bell)
        os.close(self._ring)


@pytest.fixture
def wire() -> Iterator[Wire]:
    reactor = Reactor()
    made = Wire(reactor, Endpoint(APPLIANCE), lambda _event: None)
    yield made
    made.close()
    reactor.close()


def line_of(listener: Listener, ended: list[bool]) -> KernelLine:
    device = os.open("/dev/null", os.O_RDWR)
    held = HeldVsock(KernelVsock(fd=device, cid=77, port=1), listener)  # type: ignore[arg-type]
    return KernelLine(held, lambda: ended.append(True))


def test_only_the_machine_itself_is_let_in(wire: Wire) -> None:
    listener, ended = Listener((78, 1000), (2, 1000), (77, 1024), (77, 1023)), list[bool]()
    line = line_of(listener, ended)
    line.serve(wire)
    for stranger in range(3):
        wire.reactor.run_once(1)
        assert listener.ends[stranger].recv(1) == b""
        assert wire.transport is None
    wire.reactor.run_once(1)
    assert wire.transport is not None
    assert line.lost()
    line.machine_ended()
    assert not ended, "what the guest has said is still to be read"
    assert not line.lost()
    line.close()
    for end in listener.ends:
        end.close()


def test_the_link_of_a_machine_that_never_connected_ends_with_it(wire: Wire) -> None:
    ended: list[bool] = []
    line = line_of(Listener(), ended)
    line.serve(wire)
    line.machine_ended()
    assert ended == [True]
    line.close()
