"""A second implementation of the appliance's end, from docs/protocol.md with cbor2 and zlib, against the real one.

It keeps to the page and to nothing else; where it has to guess, the page is what needs a change.
"""

import os
import struct
import zlib
from typing import Any

import cbor2
import pytest

from tether.link.endpoint import Endpoint
from tether.link.events import Connected, Drained, Event, Requested, Writable
from tether.link.hello import TETHER
from tether.link.limits import Limits
from tether.link.messages import Pong, Ready

MARK = b"\xf7TL\xfe"
HELLO, RESUME, BYE, DATA, ACK, NAK, CLOSED = range(1, 8)
FIN, ABORT, STOP = 1, 2, 2
WINDOW, CONTROL = 1000, 5000


class Third:
    """See the module.  `streams` collects what arrives, `messages` the control messages."""

    def __init__(self) -> None:
        self.instance = os.urandom(16)
        self.received: dict[int, tuple[int, int, bytes, bool]] = {}  # number -> life, window, bytes, end
        self.sent: dict[int, tuple[int, bytes, bool]] = {}  # number -> life, everything written, finished
        self.peer_has: dict[int, int] = {}
        self.known: bytes | None = None
        self.refused = ""

    def connect(self) -> bytes:
        self.connection, self.live, self.raw = os.urandom(8), False, b""
        self.theirs: dict[str, Any] = {}
        return self.frame(HELLO, 0, payload=self.hello())

    def hello(self) -> bytes:
        return cbor2.dumps(
            {
                "generations": [1, 1], "role": "appliance", "instance": self.instance, "connection": self.connection,
                "payload": 300, "window": WINDOW, "control": CONTROL, "message": 2000, "streams": 10,
            },
            canonical=True,
        )  # fmt: skip

    def resume(self) -> bytes:
        fields: dict[str, Any] = {
            "connection": self.connection,
            "echo": self.theirs["connection"],
            "known": self.theirs["instance"] == self.known,
            "send": [[n, life, self.peer_has.get(n, 0), len(data)] for n, (life, data, _) in sorted(self.sent.items())],
            "receive": [
                [n, life, len(data), len(data), len(data) + window, int(end)]
                for n, (life, window, data, end) in sorted(self.received.items())
            ],
        }
        fields = {key: value for key, value in fields.items() if value != []}
        return cbor2.dumps(fields, canonical=True)

    def frame(
        self, kind: int, key: int, *, flags: int = 0, stream: int = 0, offset: int = 0, payload: bytes = b""
    ) -> bytes:
        header = struct.pack(">4sBBHIIQ", MARK, 1, kind, flags, len(payload), stream, offset)
        check = zlib.crc32(header, key)
        framed = header + struct.pack(">I", check) + payload
        return framed + struct.pack(">I", zlib.crc32(payload, check)) if payload else framed

    def take(self, data: bytes) -> bytes:
        """Bytes in, bytes out."""
        self.raw += data
        out = b""
        while len(self.raw) >= 28:
            kind, flags, length, stream, offset, check = struct.unpack(">4xxBHIIQI", self.raw[:28])
            key = 0 if kind in (HELLO, RESUME) else struct.unpack(">I", self.connection[:4])[0]
            if self.raw[:4] != MARK or zlib.crc32(self.raw[:24], key) != check:
                self.raw = self.raw[1:]
                continue
            whole = 28 + length + (4 if length else 0)
            if len(self.raw) < whole:
                break
            payload = self.raw[28 : 28 + length]
            if length and struct.pack(">I", zlib.crc32(payload, check)) != self.raw[28 + length : whole]:
                self.raw = self.raw[1:]
                continue
            self.raw = self.raw[whole:]
            out += self.act(kind, flags, stream, offset, payload)
        return out

    def act(self, kind: int, flags: int, stream: int, offset: int, payload: bytes) -> bytes:
        life = flags >> 4
        if kind == HELLO:
            self.theirs = cbor2.loads(payload)
            self.key = struct.unpack(">I", self.theirs["connection"][:4])[0]
            return self.frame(RESUME, 0, payload=self.resume())
        if kind == RESUME:
            return self.take_resume(cbor2.loads(payload))
        if kind == BYE:
            self.refused = cbor2.loads(payload)["reason"]
        if kind == DATA and self.live:
            return self.take_data(life, flags & 15, stream, offset, payload)
        if kind == ACK and stream in self.sent:
            self.peer_has[stream] = offset
            if flags & FIN:
                del self.sent[stream]
                return self.frame(CLOSED, self.key, flags=life << 4, stream=stream)
        if kind == NAK:
            return self.send(stream, offset)
        if kind == CLOSED:
            self.received[stream] = (*self.received[stream][:3], True)
        return b""

    def take_resume(self, theirs: dict[str, Any]) -> bytes:
        if theirs["connection"] != self.theirs["connection"] or theirs["echo"] != self.connection:
            return b""
        self.live, self.known = True, self.theirs["instance"]
        for number, life, base, _ in theirs.get("send", []):
            if number not in self.received:
                assert base == 0
                self.received[number] = (life, WINDOW if number else CONTROL, b"", False)
        out = b""
        rows = {row[0]: row for row in theirs.get("receive", [])}
        for number in self.sent:
            out += self.send(number, rows[number][2] if number in rows else 0)
        return out

    def take_data(self, life: int, flags: int, stream: int, offset: int, payload: bytes) -> bytes:
        window = WINDOW if stream else CONTROL
        _, _, data, end = self.received.get(stream, (life, window, b"", False))
        if offset > len(data):
            return self.frame(NAK, self.key, flags=life << 4, stream=stream, offset=len(data))
        data += payload[len(data) - offset :]
        end = end or bool(flags & FIN)
        self.received[stream] = (life, window, data, end)
        answer = struct.pack(">QQ", len(data), len(data) + window)
        flags = life << 4 | (FIN if end else 0)
        return self.frame(ACK, self.key, flags=flags, stream=stream, offset=len(data), payload=answer)

    def send(self, number: int, start: int = 0) -> bytes:
        """Everything from `start` on, in frames of 100 bytes."""
        if not self.live or number not in self.sent:
            return b""
        life, data, finished = self.sent[number]
        out = b""
        for at in range(start, max(len(data), start + 1), 100):
            last = at + 100 >= len(data)
            flags = life << 4 | (FIN if finished and last else 0)
            out += self.frame(DATA, self.key, flags=flags, stream=number, offset=at, payload=data[at : at + 100])
        return out

    def write(self, number: int, data: bytes, finish: bool = False) -> bytes:
        life, before, _ = self.sent.get(number, (7 if number else 0, b"", False))
        self.sent[number] = (life, before + data, finish)
        return self.send(number, len(before))

    def request(self, id: int, name: str, body: dict[str, Any]) -> bytes:
        message = cbor2.dumps([0, id, name, body], canonical=True)
        return self.write(0, struct.pack(">I", len(message)) + message)

    @property
    def messages(self) -> list[Any]:
        data, found = self.received.get(0, (0, 0, b"", False))[2], []
        while len(data) >= 4:
            (length,) = struct.unpack(">I", data[:4])
            if len(data) < 4 + length:
                break
            found.append(cbor2.loads(data[4 : 4 + length]))
            data = data[4 + length :]
        return found


class Meeting:
    """The third implementation and a real tether."""

    def __init__(self) -> None:
        self.third = Third()
        self.tether = Endpoint(TETHER, Limits(payload=128, window=600, ring=600, streams=8, message=2000))
        self.events: list[Event] = []
        self.connect()

    def connect(self) -> None:
        self.tether.disconnected()
        self.tether.connected()
        self.run(self.third.connect())

    def run(self, to_tether: bytes = b"") -> None:
        """Carries bytes until none are left, and lets time pass."""
        for _ in range(4):
            while True:
                self.tether.receive(to_tether)
                to_tether = b""
                while data := self.tether.transmit():
                    to_tether += self.third.take(data)
                if not to_tether:
                    break
            self.tether.tick()
            self.tether.acknowledge()
        self.events += self.tether.events()


@pytest.fixture
def meeting() -> Meeting:
    return Meeting()


def test_they_meet_and_talk(meeting: Meeting) -> None:
    (connected,) = meeting.events
    assert isinstance(connected, Connected)
    assert connected.instance == meeting.third.instance
    meeting.tether.notify(Ready(version="1", kernel="6.1"))
    meeting.run(meeting.third.request(5, "Ping", {}))
    (asked,) = (event for event in meeting.events if isinstance(event, Requested))
    meeting.tether.answer(asked.id, Pong(monotonic_ns=1, realtime_ns=2))
    meeting.run(meeting.third.request(6, "Dance", {}))
    first, second, third = meeting.third.messages
    assert first == [2, 0, "Ready", {"version": "1", "kernel": "6.1"}]
    assert second == [1, 5, "Pong", {"monotonic_ns": 1, "realtime_ns": 2}]
    assert third[:3] == [1, 6, "Fault"]
    assert third[3]["errno"] == "EPROTO"


def test_streams_both_ways_with_their_ends(meeting: Meeting) -> None:
    data, sent = os.urandom(5000), 0
    out = meeting.tether.stream(17)
    while sent < len(data):
        sent += out.write(data[sent:])
        meeting.run()
    out.finish()
    meeting.run(meeting.third.write(16, b"typed", finish=True))
    assert meeting.third.received[17][2:] == (data, True)
    assert Drained(stream=17) in meeting.events
    assert any(isinstance(event, Writable) for event in meeting.events)
    assert meeting.tether.stream(16).read(100) == b"typed"
    meeting.run()
    assert not meeting.third.sent.keys() - {0}
    assert set(meeting.tether.mux.senders) | set(meeting.tether.mux.receivers) == {0}


def test_it_resumes_after_a_torn_frame(meeting: Meeting) -> None:
    out = meeting.tether.stream(17)
    out.write(b"a" * 300)
    meeting.run(meeting.third.request(1, "Ping", {}))
    out.write(b"b" * 300)
    meeting.third.take(meeting.tether.transmit()[:90])  # then the connection is cut, and answers are lost
    meeting.third.write(16, b"x" * 250, finish=True)
    meeting.connect()
    assert meeting.third.received[17][2] == b"a" * 300 + b"b" * 300
    assert meeting.tether.stream(16).read(1000) == b"x" * 250
    last = [event for event in meeting.events if isinstance(event, Connected)][-1]
    assert last.resumed
    assert sum(isinstance(event, Requested) for event in meeting.events) == 1


def test_what_is_lost_is_asked_for(meeting: Meeting) -> None:
    frames = meeting.third.write(16, b"y" * 300, finish=True)
    meeting.run(b"console noise" + frames[132:])  # the first frame is lost
    assert meeting.tether.stream(16).read(1000) == b"y" * 300
    assert meeting.tether.stream(16).ended


def test_one_that_speaks_another_generation_is_told(meeting: Meeting) -> None:
    third = Third()
    hello = cbor2.loads(third.connect()[28:-4]) | {"generations": [2, 3], "software": "third 1"}
    payload = cbor2.dumps(hello, canonical=True)
    meeting.tether.disconnected()
    meeting.tether.connected()
    meeting.tether.receive(third.frame(HELLO, 0, payload=payload))
    third.take(meeting.tether.transmit())
    assert "third 1" in third.refused
    assert "Update the tether" in third.refused
