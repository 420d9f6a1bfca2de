"""Files of a running container, seen from outside: what there is, what comes out, what goes in, what has changed."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.vm.harness import WAIT_S, Container, container
from tether.link.late_messages import FileStat, Stat
from vch.errors import GuestError

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def box(home: Path, demo_layout: Path) -> Iterator[Container]:
    """A container that only waits."""
    with container("--network", "none", "--tmpfs", "/scratch:size=1m", "-v", "/data/deep", f"oci:{demo_layout}:demo",
                   "sleep", "100000") as made:
        yield made


class TestStat:
    def ask(self, box: Container, path: bytes) -> FileStat:
        return cast("FileStat", box.machine.tell(Stat(path=path)).result(WAIT_S))

    def test_a_file(self, box: Container) -> None:
        box.sh("printf 12345 > /tmp/five; chmod 4750 /tmp/five; chown 12:34 /tmp/five; touch -d @1234567890 /tmp/five")
        found = self.ask(box, b"/tmp/five")
        assert found == FileStat(name=b"five", mode=stat.S_IFREG | 0o750, size=5, mtime_ns=1234567890 * 10**9,
                                 uid=12, gid=34)

    def test_links_are_told_and_not_followed(self, box: Container) -> None:
        box.sh("ln -s ../../../../../etc /tmp/out; ln -s out/passwd /tmp/two; ln -s /no/such /tmp/nowhere")
        assert self.ask(box, b"/tmp/two").link == b"out/passwd"
        assert self.ask(box, b"/tmp/two").target == b"/etc/passwd"
        assert self.ask(box, b"/tmp/nowhere").target == b"/no/such"
        assert stat.S_ISDIR(self.ask(box, b"/tmp/out/").mode)

    def test_the_root_is_the_containers(self, box: Container) -> None:
        assert stat.S_ISDIR(self.ask(box, b"/").mode)
        assert self.ask(box, b"/../../tmp/./five").size == 5
        for path in (b"/proc/1/root/init", b"/init"):  # the agent's own root has it
            with pytest.raises(GuestError):
                self.ask(box, path)

    def test_what_is_not_there(self, box: Container) -> None:
        with pytest.raises(GuestError) as raised:
            self.ask(box, b"/no/such")
        assert (raised.value.fault.step, raised.value.fault.errno) == ("stat", "ENOENT")
        assert raised.value.fault.object == "/no/such"
