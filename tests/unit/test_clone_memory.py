"""More memory than a template has: which machines have it plugged in, and when a size gets a template of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.template_parts import a_machine, put
from tether.kernel.derived import scaled
from vch.clone.key import GROWS_TO_MIB, clone_of, growable, key_of, smaller, template_of
from vch.clone.origin import Cloning
from vch.clone.store import Store
from vch.pool import Pool
from vch.pool_kind import kind_of
from vch.qemu.config import Channels, Frozen, LinkKind, MachineConfig, command_line

CHANNELS = Channels(qmp=3, link=4, console=5)
FROZEN = Frozen(7, 8)


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    return a_machine(tmp_path)


def sized(config: MachineConfig, mib: int) -> MachineConfig:
    return config._replace(memory_mib=mib)


@pytest.mark.parametrize(("wanted", "standard"), [(384, 256), (512, 256), (1024, 256), (428, 300)])
def test_memory_comes_in_whole_blocks(config: MachineConfig, wanted: int, standard: int) -> None:
    assert smaller(sized(config, wanted), standard) == growable(sized(config, standard))


@pytest.mark.parametrize(
    ("wanted", "standard"), [(256, 256), (128, 256), (300, 256), (GROWS_TO_MIB, 256), (GROWS_TO_MIB + 128, 256)]
)
def test_what_is_not_reached_by_plugging_in(config: MachineConfig, wanted: int, standard: int) -> None:
    assert smaller(sized(config, wanted), standard) is None


def test_a_machine_that_cannot_be_a_clone_has_no_room_for_more(config: MachineConfig) -> None:
    assert growable(config._replace(link=LinkKind.VSOCK)) == config._replace(link=LinkKind.VSOCK)
    assert smaller(config._replace(memory_mib=512, link=LinkKind.VSOCK), 256) is None


def test_template_and_clone_have_the_same_room(config: MachineConfig) -> None:
    words = [
        command_line(machine, CHANNELS)
        for machine in (template_of(config, FROZEN), clone_of(sized(config, 512), FROZEN, 256))
    ]
    assert [line[line.index("-m") + 1] for line in words] == [f"256M,slots=16,maxmem={GROWS_TO_MIB}M"] * 2


def chosen(cloning: Cloning, config: MachineConfig) -> tuple[str, list[str]]:
    """The key of the template that it would be a clone of, "" for none; and what was said."""
    heard: list[str] = []
    found = cloning.template(config, str(config.boot.kernel.parent / "qemu"), heard.append)
    if found is None:
        return "", heard
    found.close()
    return found.facts.key, heard


def test_which_template_is_taken(tmp_path: Path, config: MachineConfig) -> None:
    program = str(tmp_path / "qemu")
    cloning = Cloning(Store(tmp_path), make=False, standard_mib=256)
    own, standard = (key_of(sized(config, mib), program) for mib in (512, 256))
    put(cloning.store, standard)
    assert chosen(cloning, sized(config, 512))[0] == standard
    assert chosen(cloning, sized(config, 300))[0] == ""
    put(cloning.store, own)
    assert chosen(cloning, sized(config, 512))[0] == own
    cloning.store.remove(own)
    assert chosen(cloning._replace(standard_mib=0), sized(config, 512))[0] == ""
    cloning.give_up_growing(sized(config, 512), program)
    key, heard = chosen(cloning, sized(config, 512))
    assert key == ""
    assert "could not be made a while ago, or not be used" in heard[0]
    assert chosen(cloning, config)[0] == standard


def test_one_kind_of_a_pool_serves_what_can_be_plugged_in(config: MachineConfig) -> None:
    with Pool() as pool:
        def kind(mib: int) -> int:
            wanted = kind_of(sized(config, mib), Path(), "qemu", None, with_root=False)
            return pool._known(wanted).config.memory_mib

        assert [kind(mib) for mib in (256, 512, 300, 128, 384)] == [256, 256, 300, 128, 256]
        pool._kinds = []
        assert [kind(mib) for mib in (512, 256, 512, 1024)] == [512, 256, 512, 512]


def test_shares_of_the_memory_grow_with_it() -> None:
    assert scaled(b"2649\t3535\t5298\n", 1024, 4096) == b"10596 14140 21192"
