"""Templates without machines: keys, the store and what may become of its files, the message that wakes a clone."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.template_parts import KEY, a_machine, put
from tether.kernel.kernelargs import parse
from tether.link import waking
from tether.link.errors import LinkError
from tether.link.waking import Wake
from tether.spec import Identity
from vch.clone import store as store_module
from vch.clone.key import TEMPLATE_WORD, clone_of, fits, key_of, template_of
from vch.clone.origin import Cloning
from vch.clone.store import MEMORY, RECORD, STATE, Store
from vch.errors import BootError, HostError
from vch.ports import Published
from vch.qemu.config import (
    TEMPLATE_MAC,
    Accelerator,
    Channels,
    Frozen,
    LinkKind,
    MachineConfig,
    UserNetwork,
    command_line,
)

CHANNELS = Channels(qmp=3, link=4, console=5)


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    return a_machine(tmp_path)


def key(config: MachineConfig) -> str:
    return key_of(config, str(config.boot.kernel.parent / "qemu"))


# keys


def test_what_differs_between_machines_of_a_kind_does_not_matter(config: MachineConfig) -> None:
    published = Published("tcp", "127.0.0.1", 8080, 80)
    others = (
        config._replace(name="other"),
        config._replace(drives=(), fd_sets={1: 9}),
        config._replace(network=UserNetwork("02:00:00:00:00:09", (published,))),
    )
    assert {key(other) for other in others} == {key(config)}


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one._replace(memory_mib=512),
        lambda one: one._replace(cpus=2),
        lambda one: one._replace(network=None),
        lambda one: one._replace(accelerator=Accelerator.KVM),
        lambda one: one._replace(boot=one.boot._replace(arguments=("quiet",))),
        lambda one: one._replace(boot=one.boot._replace(initramfs=one.boot.kernel)),
    ],
)
def test_what_makes_another_kind(config: MachineConfig, change: Callable[[MachineConfig], MachineConfig]) -> None:
    assert key(change(config)) != key(config)


@pytest.mark.parametrize("name", ["kernel", "initramfs", "qemu"])
def test_a_file_that_has_changed_makes_another_key(config: MachineConfig, name: str) -> None:
    before = key(config)
    (config.boot.kernel.parent / name).write_bytes(b"a new version")
    assert key(config) != before


def test_debugging_needs_no_template_of_its_own(config: MachineConfig) -> None:
    debug = config._replace(boot=config.boot._replace(arguments=("tether.debug", "panic=-1")))
    assert key(debug) == key(config)


def test_which_machines_may_be_clones(config: MachineConfig) -> None:
    assert fits(config)
    assert not fits(config._replace(link=LinkKind.VSOCK))
    assert not fits(config._replace(link=LinkKind.UART))
    assert not fits(config._replace(link_path=Path("/run/link")))
    assert not fits(config._replace(devices=("-device", "edu")))


# command lines


def test_template_and_clone_have_the_same_devices(config: MachineConfig) -> None:
    def devices(of: MachineConfig) -> list[str]:
        words = command_line(of, CHANNELS)
        return [word.replace(",netdev=net", "") for before, word in pairwise(words) if before == "-device"]

    frozen = Frozen(7, 8)
    assert devices(template_of(config, frozen)) == devices(clone_of(config, frozen, 256))
    assert any(TEMPLATE_MAC in device for device in devices(clone_of(config, frozen, 256)))


def test_a_template_shares_its_memory_and_a_clone_does_not(config: MachineConfig) -> None:
    frozen = Frozen(7, 8)
    template = " ".join(command_line(template_of(config, frozen), CHANNELS))
    clone = " ".join(command_line(clone_of(config, frozen, 256), CHANNELS))
    assert "mem-path=/proc/self/fd/7,share=on" in template
    assert "mem-path=/proc/self/fd/7,share=off,reserve=off" in clone
    assert TEMPLATE_WORD in template
    assert "-kernel" not in clone
    assert "-incoming defer" in clone
    assert parse(TEMPLATE_WORD).template


# the store


def test_what_is_put_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.open(KEY) is None
    put(store)
    template = store.open(KEY)
    assert template is not None
    assert os.pread(template.memory, 9, 0) == b"m" * 9
    assert [(one.facts.key, one.busy) for one in store.list()] == [(KEY, True)]
    template.close()
    assert not store.list()[0].busy
    assert store.remove(KEY)
    assert not store.remove(KEY)
    assert list(store.folder.iterdir()) == []


def damage_length(folder: Path) -> None:
    os.truncate(folder / MEMORY, 100)


def damage_state(folder: Path) -> None:
    (folder / STATE).write_bytes(b"stale")


def damage_record(folder: Path) -> None:
    (folder / RECORD).write_text("{")


def damage_format(folder: Path) -> None:
    (folder / RECORD).write_text('{"format": 99}')


def damage_nothing_left(folder: Path) -> None:
    (folder / MEMORY).unlink()


def damage_record_gone(folder: Path) -> None:
    (folder / RECORD).unlink()


@pytest.mark.parametrize(
    "damage",
    [damage_length, damage_state, damage_record, damage_format, damage_nothing_left, damage_record_gone],
    ids=lambda one: one.__name__,
)
def test_a_damaged_template_is_none_and_is_removed(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = Store(tmp_path)
    folder = put(store)
    damage(folder)
    assert store.open(KEY) is None
    assert not folder.exists()
    put(store)
    found = store.open(KEY)
    assert found is not None
    found.close()


def test_a_template_under_another_key_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store).rename(store.folder / ("cd" * 16))
    assert store.open("cd" * 16) is None


def test_one_maker_at_a_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.making(KEY) as first, store.making(KEY) as second, store.making("cd" * 16) as other:
        assert first is not None
        assert second is None
        assert other is not None
    assert list(store.folder.iterdir()) == []


def test_what_a_killed_maker_left_is_removed(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from vch.clone.store import Store
with Store(Path({str(tmp_path)!r})).making({KEY!r}) as scratch:
    (scratch / "memory").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[2])
    store = Store(tmp_path)
    assert [path.name for path in store.folder.iterdir()] == [f".making-{KEY}"]
    assert store.open(KEY) is None
    put(store, "cd" * 16)
    assert [path.name for path in store.folder.iterdir()] == ["cd" * 16]


def test_one_that_was_killed_while_it_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store).rename(store.folder / ".gone-1-2")
    store.collect()
    assert list(store.folder.iterdir()) == []


def test_templates_that_nobody_uses_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    old = put(store, "01" * 16)
    busy = put(store, "02" * 16)
    for folder in (old, busy):
        os.utime(folder / RECORD, (0, 0))
    held = os.open(busy / MEMORY, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    store.collect()
    assert {path.name for path in store.folder.iterdir()} == {busy.name}
    os.close(held)
    monkeypatch.setattr(store_module, "MOST_KEPT", 2)
    for number in range(3, 7):
        put(store, f"{number:02}" * 16)
    assert len(store.list()) == 3  # two, and the one that was being made


def test_a_folder_that_others_may_enter_is_not_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store)
    store.folder.chmod(0o755)
    assert store.open(KEY) is None
    with pytest.raises(HostError, match="others may enter it"):
        store.room()


def test_a_template_that_could_not_be_made_is_not_tried_at_once_again(
    tmp_path: Path, config: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho 'no such machine' >&2; exit 1\n")
    program.chmod(0o755)
    heard: list[str] = []
    cloning = Cloning(Store(tmp_path))
    for _ in range(2):
        assert cloning.template(config, str(program), heard.append) is None
    assert "no such machine" in heard[1]
    assert "could not be made a while ago" in heard[2]
    monkeypatch.setattr(store_module, "FAILED_SECONDS", 0.0)
    assert cloning.template(config, str(program), heard.append) is None
    assert "no such machine" in heard[-1]
    assert not [path for path in cloning.store.folder.iterdir() if not path.name.startswith(".failed-")]


def test_without_room_there_is_no_template(tmp_path: Path, config: MachineConfig) -> None:
    heard: list[str] = []
    huge = config._replace(memory_mib=1 << 40)
    assert Cloning(Store(tmp_path)).template(huge, str(tmp_path / "qemu"), heard.append) is None
    assert "MiB are free" in heard[-1]
    assert "VCH_TEMPLATES" in heard[-1]


def test_without_a_kernel_there_is_no_template(tmp_path: Path, config: MachineConfig) -> None:
    heard: list[str] = []
    config.boot.kernel.unlink()
    assert Cloning(Store(tmp_path)).template(config, str(tmp_path / "qemu"), heard.append) is None
    assert "kernel" in heard[-1]


@pytest.mark.parametrize(("cause", "kept"), [("load of migration failed", False), ("killed by SIGKILL", True)])
def test_a_clone_that_did_not_come_up(tmp_path: Path, cause: str, kept: bool) -> None:
    cloning = Cloning(Store(tmp_path))
    put(cloning.store)
    template = cloning.store.open(KEY)
    assert template is not None
    cloning.give_up(template, BootError("boot", "QEMU", cause))
    template.close()
    assert (len(cloning.store.list()) == 1) is kept


# waking


WAKE = Wake(identity=Identity(entropy=bytes(64), clock_ns=1_700_000_000_000_000_000))


def test_the_wake_arrives() -> None:
    data = waking.pack(WAKE)
    header, body = data[: waking.HEADER_BYTES], data[waking.HEADER_BYTES :]
    assert waking.body_length(header) == len(body)
    assert waking.unpack(header, body) == WAKE


def test_a_wake_that_is_none() -> None:
    data = bytearray(waking.pack(WAKE))
    with pytest.raises(LinkError, match="does not wake"):
        waking.body_length(b"GET / HTTP/1.1\r\n"[: waking.HEADER_BYTES])
    data[-1] ^= 1
    with pytest.raises(LinkError, match="damaged"):
        waking.unpack(bytes(data[: waking.HEADER_BYTES]), bytes(data[waking.HEADER_BYTES :]))
