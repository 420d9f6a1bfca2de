"""Coverage-guided fuzzing of everything that untrusted bytes of the link reach (atheris, libFuzzer).

    python tests/fuzz/fuzz_decoder.py                  until stopped (make fuzz)
    python tests/fuzz/fuzz_decoder.py --seconds 30     bounded, for continuous integration
    python tests/fuzz/fuzz_decoder.py FILE...          an input that failed, again; needs no atheris

The first byte of an input chooses what is tried:

    raw bytes     the decoder, cut into pieces of any size, with noise in between
    frames        a live endpoint of either role gets frames with right checksums and any content, and time passes
    values        the CBOR decoder, and hello, resume and message on top of it
    snapshot      Endpoint.restore
    serial port   what an ESXi host says to vch.vspc

Nothing but ProtocolError (VspcError) may come out, what is held stays within the limits, and CBOR has one encoding per
value.  The fuzzer begins with the published examples of the wire (tests/unit/frozen_link).
"""

import gc
import importlib
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FunctionType

sys.path.insert(0, str(Path(__file__).parents[2]))

from tether.link import cbor
from tether.link.control import read_message
from tether.link.endpoint import LIVE, Endpoint
from tether.link.errors import ProtocolError
from tether.link.frame import ACK, BYE, CLOSED, DATA, HELLO, NAK, RESUME, Decoder, build
from tether.link.hello import APPLIANCE, TETHER, hello_of, pack, read_hello, read_resume
from tether.link.limits import Limits
from vch.vspc.session import MOST_QUEUED, Session
from vch.vspc.telnet import VspcError

EXAMPLES = Path(__file__).parents[1] / "unit/frozen_link/generation-1.txt"
LIMITS = Limits(payload=256, window=1024, ring=1024, streams=4, message=512)
KINDS = (DATA, ACK, NAK, CLOSED, RESUME, HELLO, BYE, 99)
KEY = 0
OFFSETS = (0, 1, 5, 255, 256, 1023, 1024, 1025, 1 << 32, (1 << 62) - 1, (1 << 64) - 1)
STREAMS = (0, 1, 16, 17, 18, 19, 20, 21, (1 << 32) - 1)


class Input:
    """Bytes that are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def byte(self) -> int:
        return self.take(1)[0] if self.left else 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += len(taken)
        return taken


def zeros(count: int) -> bytes:
    """No chance: the same input always does the same."""
    return bytes(count)


def try_decoder(source: Input) -> None:
    """Raw bytes."""
    decoder = Decoder(256, ends=bool(source.byte() & 1))
    decoder.reset(KEY)
    while source.left:
        rest = memoryview(source.take(1 + source.byte()))
        while rest:
            rest = memoryview(decoder.feed(rest))
            while decoder.next() is not None:
                continue
        decoder.tick()


def live_endpoint(role: str) -> Endpoint:
    """An endpoint that has been through an opening."""
    endpoint = Endpoint(role, LIMITS, random=zeros)
    endpoint.connected()
    endpoint.transmit()
    other = TETHER if role == APPLIANCE else APPLIANCE
    hello = hello_of(other, LIMITS, instance=b"i" * 16, connection=b"c" * 8, durable=False, software="")
    resume = cbor.dumps({"connection": b"c" * 8, "echo": bytes(8), "known": False})
    for kind, payload in ((HELLO, pack(hello)), (RESUME, resume)):
        endpoint.receive(b"".join(build(kind, 0, parts=[payload])))
    assert endpoint.phase == LIVE
    return endpoint


def try_endpoint(source: Input) -> None:
    """Frames."""
    endpoint = live_endpoint(TETHER if source.byte() & 1 else APPLIANCE)
    out, into = endpoint.stream(17), endpoint.stream(18)
    while source.left:
        action = source.byte()
        try:
            if action < 0xC0:
                take_frame(endpoint, source, action)
            elif action < 0xD0 and not out.stopped and not (out._out and out._out.finished):
                out.write(bytes(source.byte() * 4))
            elif action < 0xD8:
                into.read(source.byte())
            elif action < 0xDC:
                out.finish()
            elif action < 0xE0:
                into.stop()
            elif action < 0xF0:
                endpoint.tick()
            else:
                endpoint.acknowledge()
        except ProtocolError:
            endpoint.disconnected()
            return
        endpoint.events()
        assert len(endpoint.transmit()) <= 16384
        held = sum(one.buffered for one in endpoint.mux.receivers.values())
        assert held <= (LIMITS.streams + 1) * LIMITS.window + LIMITS.control_window


def take_frame(endpoint: Endpoint, source: Input, action: int) -> None:
    """One frame with right checksums."""
    kind = KINDS[action % len(KINDS)]
    flags, stream, offset = source.byte(), STREAMS[source.byte() % len(STREAMS)], source.byte()
    payload = source.take(source.byte())
    if offset & 0x80:
        offset = OFFSETS[offset % len(OFFSETS)]
    parts: list[bytes | memoryview] | None = [payload] if payload else None
    endpoint.receive(b"".join(build(kind, KEY, flags=flags, stream=stream, offset=offset, parts=parts)))


def try_values(source: Input) -> None:
    """Payloads."""
    data = source.take(source.left)
    for read in (read_hello, read_resume, read_message):
        with suppress(ProtocolError):
            read(data)
    try:
        value = cbor.loads(data)
    except ProtocolError:
        return
    assert cbor.dumps(value) == data or "nan" in repr(value)


def try_snapshot(source: Input) -> None:
    """What is on the disk may be damaged."""
    try:
        Endpoint.restore(source.take(source.left), LIMITS)
    except ProtocolError:
        return


def try_serial_port(source: Input) -> None:
    """A host that says anything, cut anywhere."""
    session = Session("vch")
    try:
        while source.left:
            for event in session.receive(source.take(1 + source.byte())):
                assert event
            assert session.queued <= MOST_QUEUED
    except VspcError:
        return


TRIALS = (try_decoder, try_endpoint, try_values, try_snapshot, try_serial_port)


def seeds() -> list[bytes]:
    """Inputs to begin with: the published examples, each for the trial that it says most to."""
    found = []
    for line in EXAMPLES.read_text().splitlines():
        what, _, digits = line.rpartition(" ")
        data = bytes.fromhex(digits) if what and not line.startswith("#") else b""
        if what.startswith("frame"):
            found.append(b"\0\1" + b"".join(bytes((len(data[at : at + 256]) - 1,)) + data[at : at + 256]
                                            for at in range(0, len(data), 256)))
        elif what.startswith("message"):
            found.append(b"\2" + data[4:])
        elif data:
            found.append(b"\2" + data)
    endpoint = live_endpoint(APPLIANCE)
    endpoint.stream(17).write(b"kept")
    found.append(b"\3" + endpoint.snapshot())
    host = (b"\xff\xfb\xe8\xff\xfa\xe8\x00\x51\x53\xff\xf0\xff\xfa\xe8\x46Svch\xff\xf0\xff\xfa\xe8\x5012-34\xff\xf0data"
            b"\xff\xfa\xe8\x28seq\xff\xf0")
    found.append(b"\4" + bytes((len(host) - 1,)) + host)
    return found


def try_one(data: bytes) -> None:
    """One input."""
    source = Input(data)
    TRIALS[source.byte() % len(TRIALS)](source)


def fuzz(options: list[str], corpus: str) -> None:
    """Fuzzes until told to stop.  Does not return: libFuzzer ends the process."""
    atheris = importlib.import_module("atheris")  # not among the requirements: make fuzz installs it
    for one in gc.get_objects():  # instrument_all would take a minute for modules that nobody asks about
        if isinstance(one, FunctionType) and str(one.__module__).startswith(("tether.link", "vch.vspc")):
            atheris.instrument_func(one)
    atheris.Setup([sys.argv[0], "-max_len=4096", "-timeout=10", *options, corpus], try_one)
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Runs the fuzzer, in a process of its own, or the inputs that are named.  Gives the exit status."""
    files = [Path(argument) for argument in arguments if Path(argument).is_file()]
    if files:
        for file in files:
            try_one(file.read_bytes())
        return 0
    options = [argument for argument in arguments if argument.startswith("-") and argument != "--seconds"]
    if "--seconds" in arguments:
        options.append(f"-max_total_time={int(arguments[arguments.index('--seconds') + 1])}")
    began = time.monotonic()
    print(f"fuzzing the link with {options or 'no limit'}", flush=True)
    with tempfile.TemporaryDirectory(prefix="vch-fuzz-") as corpus:
        for number, data in enumerate(seeds()):
            Path(corpus, f"seed-{number}").write_bytes(data)
        child = os.fork()
        if not child:
            fuzz(options, corpus)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the child, which says what it has found
        _, status = os.waitpid(child, 0)
    print(f"fuzzed for {time.monotonic() - began:.0f} s")
    return abs(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
