"""Links over Unix and TCP sockets, and over a UART's tty as far as a pseudo terminal can stand in for it."""

import os
import stat
from pathlib import Path

import pytest

from tether.link import transport_socket
from tether.link.endpoint import Endpoint
from tether.link.errors import TransportError
from tether.link.events import Connected, Event
from tether.link.hello import APPLIANCE, TETHER
from tether.link.limits import UART
from tether.link.reactor import Reactor
from tether.link.transport import Transport
from tether.link.transport_virtio import open_virtio_port
from tether.link.wire import Wire

PATIENCE = 60.0


def carries(near: Transport, far: Transport) -> None:
    """Both ends connect and a stream gets through whole."""
    reactor = Reactor()
    events: list[Event] = []
    appliance, tether = Endpoint(APPLIANCE, near.limits), Endpoint(TETHER, far.limits)
    wires = [Wire(reactor, appliance, events.append), Wire(reactor, tether, lambda event: None)]
    wires[0].attach(near)
    wires[1].attach(far)
    assert reactor.run_until(lambda: any(isinstance(event, Connected) for event in events), PATIENCE)
    data, out, into, got = os.urandom(300_000), tether.stream(17), appliance.stream(17), b""
    sent = 0
    while not into.ended:
        if sent < len(data):
            sent += out.write(data[sent:])
        else:
            out.finish()
        reactor.run_once(1)
        got += into.read(1 << 20)
    assert got == data
    for wire in wires:
        wire.close()
    reactor.close()


@pytest.mark.parametrize("kind", ["unix", "tcp", "tcp6"])
def test_connect_and_listen(kind: str, tmp_path: Path) -> None:
    address = {"unix": f"unix:{tmp_path}/link", "tcp": "tcp:127.0.0.1:0", "tcp6": "tcp:[::1]:0"}[kind]
    listener = transport_socket.listen(address)
    if kind == "unix":
        assert stat.S_IMODE(os.stat(tmp_path / "link").st_mode) == 0o600
    else:
        address = address[:-1] + str(listener.getsockname()[1])
    assert transport_socket.accept(listener, address) is None
    near = transport_socket.start_connecting(address)
    far = None
    while far is None:
        far = transport_socket.accept(listener, address)
    carries(transport_socket.connected(near, address), far)
    listener.close()


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="does anybody listen"):
        transport_socket.start_connecting(f"unix:{tmp_path}/nobody")
    with pytest.raises(TransportError, match="listen on"):
        transport_socket.listen(f"unix:{tmp_path}/no/folder")


@pytest.mark.parametrize("address", ["", "unix:", "tcp:", "tcp:1", "tcp:1.2.3.4:x", "tcp:1.2.3.4:99999", "pigeon:7"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(TransportError, match="not of a known form"):
        transport_socket.parse(address)


def test_uart_limits_on_a_tty() -> None:
    master, slave = os.openpty()
    import tty

    tty.setraw(slave)
    carries(Transport(master, "host", limits=UART), Transport(slave, "guest", limits=UART))


def test_a_virtio_port_is_found_by_its_name(tmp_path: Path) -> None:
    for device, name in (("vport1p1", "org.other"), ("vport1p2", "org.vch.link.0")):
        (tmp_path / "class" / device).mkdir(parents=True)
        (tmp_path / "class" / device / "name").write_text(name + "\n")
    (tmp_path / "class" / "vport1p0").mkdir()
    with pytest.raises(TransportError, match=r"org\.other, org\.vch\.link\.0") as caught:
        open_virtio_port("org.nobody", sysfs=f"{tmp_path}/class", devices=str(tmp_path))
    assert caught.value.hint
    with pytest.raises(TransportError, match="vport1p2"):
        open_virtio_port("org.vch.link.0", sysfs=f"{tmp_path}/class", devices=str(tmp_path))
    os.mkfifo(tmp_path / "vport1p2")
    transport = open_virtio_port("org.vch.link.0", sysfs=f"{tmp_path}/class", devices=str(tmp_path))
    assert transport.permanent
    transport.close()
    transport.close()
    with pytest.raises(TransportError, match="the ports are: none"):
        open_virtio_port("x", sysfs=f"{tmp_path}/nothing")
