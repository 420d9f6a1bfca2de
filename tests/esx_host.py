"""An ESXi host of VMware's serial port protocol, written from VMware's description and not from our code: the codes
stand here once more, as bytes.  And what is around it in a test.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from tether.link.reactor import Reactor
from vch.vspc.server import Server

SERVICE = "vch"
UUID = b"50 20 a4 8e 59 7c 3f 21-11 6d 5c ab 6a 0f 7c 01"
UUID_DIGITS = "5020a48e597c3f21116d5cab6a0f7c01"
SECONDS = 100.0


def until(reactor: Reactor, condition: Callable[[], bool], what: str) -> None:
    assert reactor.run_until(condition, SECONDS), f"waited for {what}"


def send_all(reactor: Reactor, end: socket.socket, data: bytes) -> None:
    """Sends raw bytes while everything else goes on."""
    view = memoryview(data)
    deadline = time.monotonic() + SECONDS
    while view:
        assert time.monotonic() < deadline
        try:
            view = view[end.send(view) :]
        except BlockingIOError:
            reactor.run_once(0.01)


class EsxHost:
    """One serial port connection, as the host of a VM makes it.  `stream` is the VM's end of its UART."""

    def __init__(self, reactor: Reactor, address: tuple[str, int]) -> None:
        self.reactor = reactor
        self.end = socket.create_connection(address, SECONDS)
        self.end.setblocking(False)
        self.raw = b""
        self.commands: list[bytes] = []  # payloads of option 232
        self.data = bytearray()  # for the VM
        self.closed = False
        self._watch = reactor.watch(self.end.fileno(), self._read)

    def _read(self, _ready: int) -> None:
        try:
            piece = self.end.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            piece = b""
        if not piece:
            self.hang_up()
            return
        self.raw += piece
        self._take()

    def _take(self) -> None:
        while self.raw:
            before, mark, after = self.raw.partition(b"\xff")
            self.data += before
            if not mark:
                self.raw = b""
            elif not after:
                self.raw = b"\xff"
                return
            elif after[0] == 255:
                self.data += b"\xff"
                self.raw = after[1:]
            elif after[0] == 250:
                inside = after.replace(b"\xff\xff", b"\x00\x01<255>\x01\x00")  # nothing says this by itself
                payload, end, _ = inside.partition(b"\xff\xf0")
                if not end:
                    self.raw = b"\xff" + after
                    return
                self.raw = inside[len(payload) + 2 :].replace(b"\x00\x01<255>\x01\x00", b"\xff\xff")
                payload = payload.replace(b"\x00\x01<255>\x01\x00", b"\xff")
                assert payload[1] == 232
                self.commands.append(payload[2:])
            else:
                if len(after) < 2:
                    self.raw = b"\xff" + after
                    return
                self.raw = after[2:]

    def say(self, data: bytes) -> None:
        """Sends raw bytes."""
        send_all(self.reactor, self.end, data)

    def command(self, code: int, parameters: bytes = b"") -> None:
        self.say(b"\xff\xfa\xe8" + bytes([code]) + parameters.replace(b"\xff", b"\xff\xff") + b"\xff\xf0")

    def serial(self, data: bytes) -> None:
        """What the VM's UART says."""
        self.say(bytes(data).replace(b"\xff", b"\xff\xff"))

    def expect(self, code: int) -> bytes:
        """The next answer, which has to be this one."""
        until(self.reactor, lambda: bool(self.commands), f"command {code}")
        answer = self.commands.pop(0)
        assert answer[0] == code, answer
        return answer[1:]

    def open(self, uuid: bytes = UUID) -> None:
        """As a VM that is switched on."""
        self.say(b"\xff\xfb\xe8\xff\xfd\x00\xff\xfb\x00\xff\xfd\x03\xff\xfb\x2c")
        self.command(0, bytes([0, 1, 2, 3, 40, 41, 43, 44, 45, 46, 48, 70, 71, 73, 80, 81, 82, 83]))
        known = self.expect(1)
        assert {0, 1, 3, 40, 41, 43, 44, 45, 46, 48, 70, 71, 80, 82} <= set(known)
        assert (self.expect(83), self.expect(81)) == (b"", b"")
        self.command(70, b"S" + SERVICE.encode())
        self.expect(71)
        self.command(82, b"web-1")
        self.command(80, uuid)

    def arrive(self, claim: bytes) -> None:
        """As the host a VM moves to."""
        self.say(b"\xff\xfb\xe8\xff\xfd\x00\xff\xfb\x00")
        self.command(0, bytes([0, 1, 2, 3, 40, 41, 43, 44, 45, 46, 48]))
        self.expect(1)
        self.command(44, claim)

    def sent_away(self) -> None:
        until(self.reactor, lambda: self.closed, "the host to be sent away")

    def hang_up(self) -> None:
        if not self.closed:
            self.closed = True
            self._watch.close()
            self.end.close()


class Reader:
    """Who has the VM's stream.  `most`: stops reading there."""

    def __init__(self, reactor: Reactor, end: socket.socket) -> None:
        end.setblocking(False)
        self.reactor, self.end = reactor, end
        self.got = bytearray()
        self.ended = False
        self._watch = reactor.watch(end.fileno(), self._read, readable=False)

    def _read(self, _ready: int) -> None:
        with contextlib.suppress(BlockingIOError):
            piece = self.end.recv(65536)
            self.got += piece
            self.ended = not piece
        if self.ended:
            self._watch.close()

    def read(self, size: int) -> bytes:
        """The next bytes, so many."""
        self._watch.update(readable=True, writable=False)
        until(self.reactor, lambda: len(self.got) >= size, f"{size} bytes, there are {len(self.got)}")
        self._watch.update(readable=False, writable=False)
        taken = bytes(self.got[:size])
        del self.got[:size]
        return taken

    def write(self, data: bytes) -> None:
        send_all(self.reactor, self.end, data)

    def detach(self) -> int:
        self._watch.close()
        return self.end.detach()

    def close(self) -> None:
        self._watch.close()
        self.end.close()


class Site:
    """A server whose VMs all have a reader, and what the readers have got."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.streams: dict[str, Reader] = {}
        self.names: dict[str, str] = {}
        self.server = Server(self.reactor, listener, SERVICE, self._came)

    def _came(self, uuid: str, name: str) -> None:
        self.names[uuid] = name
        self.streams[uuid] = self.reader(uuid)

    def reader(self, uuid: str) -> Reader:
        stream = self.server.open(uuid)
        assert stream is not None
        return Reader(self.reactor, stream)

    def host(self) -> EsxHost:
        return EsxHost(self.reactor, self.address)

    def close(self) -> None:
        self.server.close()
        for stream in self.streams.values():
            stream.close()
        self.reactor.close()


def only(site: Site) -> Reader:
    until(site.reactor, lambda: len(site.streams) == 1, "the VM to be known")
    return next(iter(site.streams.values()))
