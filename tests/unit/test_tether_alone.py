"""A VM that brings its own spec: finding the ISO, reading the spec, and doing the appliance's part."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from imagebuild.media.iso9660 import Extent, Volume, metadata
from tether.faults import TetherError
from tether.kernel import kernelargs
from tether.link.endpoint import Endpoint
from tether.link.events import Requested
from tether.link.hello import TETHER
from tether.link.messages import Ended, Exited, Shutdown, Signalled, Start, Started, stderr_of, stdout_of
from tether.link.reactor import Reactor
from tether.link.wire import Wire
from tether.rootfs import disks
from tether.sources import alone, medium, specfile
from tether.spec import Disk

SPEC = {"id": "x", "root": {"layers": [{"disk": {"file": "vch/layers/001.erofs"}}]}, "network": {"hostname": "h"},
        "process": {"args": ["sh", "\udcff"], "stdin": True}}  # fmt: skip


def test_a_spec_in_json_gets_an_identity_of_its_own() -> None:
    one, two = (specfile.parse_spec(json.dumps(SPEC).encode(), "spec") for _ in range(2))
    assert one.identity.entropy != two.identity.entropy
    assert len(one.identity.entropy) == 32
    assert one.process.args == (b"sh", b"\xff")
    assert one.root.layers[0].disk == Disk(file="vch/layers/001.erofs")


@pytest.mark.parametrize(("text", "said"), [
    (b"{", "is not JSON"), (b"\xff", "is not JSON"), (b"[]", "not a JSON object"),
    (json.dumps({**SPEC, "identity": {}}).encode(), "every VM would have the same"),
    (json.dumps({**SPEC, "colour": 1}).encode(), "unknown key"),
    (b"{}", "required key is missing"),
])  # fmt: skip
def test_a_spec_that_is_none_is_refused_by_name(text: bytes, said: str) -> None:
    with pytest.raises(TetherError, match=said) as caught:
        specfile.parse_spec(text, "vch/spec.json")
    assert caught.value.what.startswith("vch/spec.json")
    assert caught.value.hint


def test_the_label_is_read_from_the_volume_descriptor() -> None:
    nothing = Extent(0, 0)
    blocks = metadata({"a": Extent(50, 1)}, Volume("VCH_0123456789AB", 0, 60, nothing, nothing))
    assert medium.label_of(blocks[:2048]) == "VCH_0123456789AB"
    assert medium.label_of(bytes(2048)) is None
    assert medium.label_of(b"") is None


def test_the_loop_request_is_as_long_as_the_kernel_wants() -> None:
    """struct loop_config of linux/loop.h: 8 + 232 + 64 bytes, with the flags of loop_info64 at 52."""
    packed = medium._LOOP_CONFIG.pack(7, 0, *[0] * 5, 0, 0, 0, 1, b"", b"", b"", *[0] * 10)
    assert len(packed) == 304
    assert struct.unpack_from("=I", packed, 8 + 40 + 12) == (1,)


@pytest.mark.parametrize("disk", [
    Disk(), Disk(serial="a", scsi="0:0:0:0"), Disk(file="a", serial="b"), Disk(file="a", partition=1),
])  # fmt: skip
def test_a_disk_is_named_in_one_way(disk: Disk) -> None:
    with pytest.raises(TetherError, match="one of serial, SCSI address"):
        disks.find_disk(disk)


def test_a_file_without_a_medium_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medium, "MOUNTED", "/nonexistent")
    with pytest.raises(TetherError, match="has not started from an ISO"):
        disks.find_disk(Disk(file="vch/layers/001.erofs"))


def test_the_kernel_command_line_names_the_source() -> None:
    assert kernelargs.parse("quiet tether.spec=iso:VCH_1").spec == "iso:VCH_1"
    with pytest.raises(TetherError, match="unknown source"):
        alone.find_spec("nfs:somewhere")


def test_without_a_spec_of_its_own_nothing_is_imported_for_it() -> None:
    code = "import sys, tether.__main__; print([name for name in sys.modules if name == 'json' or '.sources' in name])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60) == "[]\n"


class Agent:
    """The agent's end of the link, as far as the caretaker sees it."""

    def __init__(self, reactor: Reactor, spec: dict[str, Any]) -> None:
        near, far = alone.link_to_self()
        self.endpoint = Endpoint(TETHER, near.limits)
        self.asked: list[object] = []
        self.reactor, self.wire = reactor, Wire(reactor, self.endpoint, self._take)
        self.wire.attach(near)
        alone.Caretaker(reactor, far, specfile.parse_spec(json.dumps(spec).encode(), "spec"))

    def _take(self, event: object) -> None:
        if isinstance(event, Requested):
            self.asked.append(event.message)
            if isinstance(event.message, Start):
                self.endpoint.answer(event.id, Started(pid=7))

    def run_until(self, asked: type[object]) -> Any:
        assert self.reactor.run_until(lambda: any(isinstance(one, asked) for one in self.asked), 10)
        return next(one for one in self.asked if isinstance(one, asked))


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """What the console shows can be read here."""
    shown, write = os.pipe()
    monkeypatch.setattr(alone, "_CONSOLE", write)
    monkeypatch.setattr(alone, "say", lambda line: os.write(write, line.encode() + b"\n"))
    yield shown
    os.close(shown)
    os.close(write)


def test_output_comes_before_the_end_and_the_end_asks_for_the_shutdown(console: int) -> None:
    agent = Agent(Reactor(), SPEC)
    assert agent.run_until(Start).spec.id == "x"
    agent.endpoint.notify(Ended(session=0, state=Exited(code=3)))
    for number, text in ((stdout_of(0), b"out\n"), (stderr_of(0), b"err\n")):
        stream = agent.endpoint.stream(number)
        stream.write(text)
        stream.finish()
    assert agent.run_until(Shutdown).reason == "the container ended with exit code 3"
    said = os.read(console, 4096).decode()
    assert sorted(said.splitlines()[:2]) == ["err", "out"]
    assert said.splitlines()[2:] == ["tether: the container ended with exit code 3"]


def test_a_terminal_has_one_output(console: int) -> None:
    agent = Agent(Reactor(), {**SPEC, "process": {"args": ["sh"], "terminal": {}}})
    agent.run_until(Start)
    agent.endpoint.stream(stdout_of(0)).finish()
    agent.endpoint.notify(Ended(session=0, state=Signalled(number=9), oom_killed=True))
    assert "signal 9, because memory ran out" in agent.run_until(Shutdown).reason
