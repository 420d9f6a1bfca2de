"""What is decided about a VM while it runs: clock, hot-plugged hardware, volumes that go, the power button."""

from __future__ import annotations

import os
import struct
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tether.faults import TetherError
from tether.kernel.clock import STEP_BACK_NS, STEP_FORWARD_NS, must_step
from tether.kernel.deadline import do_within
from tether.kernel.latedrivers import pressed
from tether.link.late_messages import UseHardware
from tether.requests.detach import place_of_device
from tether.requests.hotplug import blocks_wanted, count_of, total_kib
from tether.rootfs.modulefolder import dependencies, may_load
from tether.spec import Process
from vch.clone.key import fits
from vch.machine.keep_clock import is_wrong
from vch.qemu.config import Accelerator, BootFiles, Channels, MachineConfig, command_line

MIB = 1 << 20
CONFIG = MachineConfig("a", Accelerator.TCG, 256, 2, BootFiles(Path("/k"), None, ()))


def words(config: MachineConfig = CONFIG) -> list[str]:
    return command_line(config, Channels(10, 11, 12))


def values(option: str, line: list[str]) -> list[str]:
    return [after for word, after in pairwise(line) if word == option]


@pytest.mark.parametrize(("behind", "step"), [(0, False), (STEP_FORWARD_NS, False), (STEP_FORWARD_NS + 1, True),
                                              (-STEP_BACK_NS, False), (-STEP_BACK_NS - 1, True)])
def test_small_differences_are_slewed(behind: int, step: bool) -> None:
    assert must_step(behind) is step


@pytest.mark.parametrize(("asked", "guest", "answered", "wrong"), [
    (100, 150, 200, False),
    (100, 99, 200, True),
    (100, 201, 200, True),
    (0, 5_000_000_000, 1_000_000_000, False),  # it took so long that the time sent next might be late, too
])  # fmt: skip
def test_a_clock_is_wrong_if_it_cannot_have_been_right(asked: int, guest: int, answered: int, wrong: bool) -> None:
    assert is_wrong(asked, guest, answered) is wrong


@pytest.mark.parametrize(("guest", "wrong"), [(79, True), (80, False), (130, False), (131, True)])
def test_a_clock_may_be_off_by_what_nobody_notices(guest: int, wrong: bool) -> None:
    assert is_wrong(100, guest, 110, 20) is wrong


@pytest.mark.parametrize(("ranges", "count"), [("0\n", 1), ("0-2\n", 3), ("0-1,4,6-7\n", 5), ("\n", 0)])
def test_lists_of_processors(ranges: str, count: int) -> None:
    assert count_of(ranges) == count


@pytest.mark.parametrize(("boot", "added", "blocks"), [(256, 0, 2), (256, 128, 3), (192, 256, 4), (129, 128, 3)])
def test_blocks_of_memory(boot: int, added: int, blocks: int) -> None:
    assert blocks_wanted(UseHardware(boot_mib=boot, added_mib=added), 128 * MIB) == blocks


def test_total_memory() -> None:
    assert total_kib("MemTotal:         243888 kB\nMemFree: 1 kB\n") == 243888


def test_modprobe_finds_what_a_module_needs() -> None:
    text = dependencies("a.ko\nb.ko\n", "c x.ko y.ko c.ko\nd a.ko d.ko\nbuilt_in\n")
    assert text == "a.ko:\nb.ko:\nx.ko:\ny.ko: x.ko\nc.ko: y.ko x.ko\nd.ko: a.ko\n"


@pytest.mark.parametrize(("capabilities", "may"), [(None, True), ((), False), (("CHOWN",), False),
                                                   (("CHOWN", "SYS_MODULE"), True)])
def test_who_may_load_modules_sees_them(capabilities: tuple[str, ...] | None, may: bool) -> None:
    assert may_load(Process(args=(b"x",), capabilities=capabilities)) is may


MOUNTS = r"""30 1 8:16 / /w rw - ext4 /dev/sdb rw
31 1 8:32 / /v/1-added rw - ext4 /dev/sdc rw
32 30 8:32 / /r/data rw - ext4 /dev/sdc rw
33 1 8:48 / /v/with\040space rw - ext4 /dev/sdd rw
"""


@pytest.mark.parametrize(("device", "place"), [((8, 32), "/v/1-added"), ((8, 16), None), ((9, 32), None)])
def test_where_the_disk_of_a_volume_is_mounted(device: tuple[int, int], place: str | None) -> None:
    assert place_of_device(MOUNTS, os.makedev(*device)) == place


def event(kind: int, code: int, value: int) -> bytes:
    return struct.pack("=qqHHi", 1, 2, kind, code, value)


@pytest.mark.parametrize(("events", "is_pressed"), [
    (event(1, 116, 1), True),
    (event(0, 0, 0) + event(1, 116, 1) + event(0, 0, 0), True),
    (event(1, 116, 0), False),  # let go
    (event(1, 30, 1), False),
    (event(2, 116, 1), False),
    (event(1, 116, 1)[:-1], False),
    (b"", False),
])  # fmt: skip
def test_the_power_button_among_input_events(events: bytes, is_pressed: bool) -> None:
    assert pressed(events) is is_pressed


def test_room_for_hardware_is_made_only_where_it_is_wanted() -> None:
    roomy = CONFIG._replace(max_memory_mib=1024, max_cpus=4)
    assert values("-m", words(roomy)) == ["256M,slots=16,maxmem=1024M"]
    assert values("-smp", words(roomy)) == ["2,maxcpus=4"]
    assert values("-m", words()) == ["256M"]
    assert not any("balloon" in word for word in words(roomy))


def test_a_machine_that_gives_memory_back_is_no_clone() -> None:
    assert fits(CONFIG)
    giving = CONFIG._replace(gives_back=True)
    assert not fits(giving)
    assert any("free-page-reporting=on" in word for word in words(giving))


class TestDeadline:
    def test_what_hangs_is_left_behind(self) -> None:
        with pytest.raises(TetherError, match="unmount: is not done after 0.2 s"):
            do_within(0.2, "unmount", lambda: time.sleep(5))

    def test_what_fails_is_said(self, capfd: pytest.CaptureFixture[str]) -> None:
        def fail() -> None:
            raise TetherError("disk", "is broken")

        do_within(30, "unmount", fail)
        assert "tether: unmount: disk: is broken" in capfd.readouterr().err

    def test_it_is_done_when_it_returns(self, tmp_path: Path) -> None:
        do_within(30, "unmount", lambda: void((tmp_path / "done").write_text("x")))
        assert (tmp_path / "done").exists()


def void(_value: object) -> None:
    """Makes a call that returns something one that does not."""
