"""Templates of an image: which machine has which, what is kept of its disk, what it is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.template_parts import KEY, a_machine, put
from tether.faults import TetherError
from tether.groundwork import Groundwork
from tether.link.errors import LinkError
from tether.link.waking import HEADER_BYTES, Prepare, Wake, body_length, pack, unpack
from tether.spec import Identity, Interface, Network, Process, Root, Spec
from vch.clone import store as store_module
from vch.clone.key import clone_of, grown_of, rooted_key, template_of
from vch.clone.origin import Cloning
from vch.clone.store import TOP, Store
from vch.clone.top import clear_top, copy_sparse, take_top
from vch.disks import MIB, DiskSet
from vch.options.spec_plan import root_of
from vch.pool_kind import Kind, kind_of
from vch.qemu.config import TEMPLATE_MAC, Channels, Drive, Frozen, MachineConfig, command_line

ROOT = root_of(4, ())
NIC = Interface(mac=TEMPLATE_MAC, addresses=("10.0.2.15/24",), gateway4="10.0.2.2")
WORD = Prepare(root=ROOT, interfaces=(NIC,))
CHANNELS = Channels(3, 4, 5)
SIZE = 16 * MIB


@pytest.fixture
def disks(tmp_path: Path) -> DiskSet:
    made = DiskSet(tmp_path)
    image = tmp_path / "image"
    image.mkdir()
    for name in ("disk.vmdk", "layer-001.erofs"):
        (image / name).write_bytes(name.encode())
    made.add_image("image", image / "disk.vmdk")
    made.add_unnamed("top", SIZE)
    return made


@pytest.fixture
def config(tmp_path: Path, disks: DiskSet) -> MachineConfig:
    return a_machine(tmp_path)._replace(drives=tuple(disks.drives), fd_sets=disks.fd_sets)


def test_the_key_is_that_of_the_root_and_nothing_else(config: MachineConfig, tmp_path: Path) -> None:
    key = rooted_key(KEY, config, WORD)
    assert key is not None
    assert rooted_key(KEY, config, WORD.but(root=ROOT.but(read_only=True))) == key  # that is seen to later
    more = config._replace(name="other", drives=(*config.drives, Drive("volume0", "/v.vmdk")))
    assert rooted_key(KEY, more, WORD) == key
    others = [
        rooted_key("cd" * 16, config, WORD),
        rooted_key(KEY, config, WORD.but(root=root_of(3, ()))),
        rooted_key(KEY, config, Prepare(root=ROOT)),
        rooted_key(KEY, config._replace(drives=tuple(one._replace(serial="x") for one in config.drives)), WORD),
    ]
    (tmp_path / "image" / "layer-001.erofs").write_bytes(b"another layer")
    others.append(rooted_key(KEY, config, WORD))
    os.truncate(config.fd_sets[config.drives[1].content], 2 * SIZE)
    others.append(rooted_key(KEY, config, WORD))
    assert len({key, *others}) == len(others) + 1


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one._replace(drives=()),
        lambda one: one._replace(drives=one.drives[1:]),
        lambda one: one._replace(drives=(one.drives[0], Drive("top", "/kept.vmdk"))),
    ],
    ids=["of a pool", "no image", "a disk that is kept"],
)
def test_machines_whose_root_is_nobody_elses(
    config: MachineConfig, change: Callable[[MachineConfig], MachineConfig]
) -> None:
    assert rooted_key(KEY, change(config), WORD) is None


def test_a_root_without_a_disk_of_its_own(config: MachineConfig) -> None:
    assert rooted_key(KEY, config, WORD.but(root=ROOT.but(writable=None))) is None


def test_only_machines_of_one_image_wait_for_each_other(config: MachineConfig, tmp_path: Path) -> None:
    cloning = Cloning(Store(tmp_path), prepare=WORD)

    def kind(one: MachineConfig, how: Cloning | None = cloning, with_root: bool = True) -> Kind:
        return kind_of(one, tmp_path, "qemu", how, with_root=with_root)

    waits = kind(config)
    assert waits.root is not None
    with_volume = config._replace(name="other", drives=(*config.drives, Drive("volume0", "/v.vmdk")))
    assert waits.covers(kind(with_volume))
    another_image = config._replace(drives=(config.drives[0]._replace(path="/other.vmdk"), config.drives[1]))
    checked = cloning._replace(prepare=WORD.but(root=root_of(3, ())))
    for other in (kind(another_image), kind(config, checked), kind(config, None), kind(config, with_root=False)):
        assert not waits.covers(other)
        assert not other.covers(waits)
    with closing(waits.root.disks()) as disks:
        assert [drive.serial for drive in disks.drives] == ["image", "top"]
        assert os.fstat(disks.fd_sets[disks.drives[1].content]).st_size == SIZE
        assert os.fstat(disks.fd_sets[1]).st_ino != os.fstat(config.fd_sets[1]).st_ino


def test_a_clone_has_the_disks_of_its_template_from_the_start(config: MachineConfig, disks: DiskSet) -> None:
    def disks_of(one: MachineConfig) -> int:
        return sum(word.startswith("scsi-hd") for word in command_line(one, CHANNELS))

    assert disks_of(template_of(config, Frozen(7, 8))) == 0
    assert disks_of(grown_of(config, Frozen(7, 8), disks)) == 0  # plugged in: it goes on where there were none
    assert disks_of(clone_of(config, Frozen(7, 8), 256)) == 0
    assert disks_of(clone_of(config, Frozen(7, 8, 2), 256)) == 2
    grown = " ".join(command_line(grown_of(config, Frozen(7, 8), disks), CHANNELS))
    assert "share=on" in grown
    assert "-incoming defer" in grown
    assert "netdev" not in grown


def test_the_disk_begins_as_the_template_left_it(tmp_path: Path, config: MachineConfig) -> None:
    content = config.fd_sets[config.drives[1].content]
    empty = os.pread(content, SIZE, 0)
    store = Store(tmp_path)
    put(store, top=b"as it was" + bytes(SIZE - 9))
    template = store.open(KEY)
    assert template is not None
    take_top(template, config)
    assert os.pread(content, 20, 0) == b"as it was" + bytes(11)
    clear_top(template, config)
    assert os.pread(content, SIZE, 0)[2048:] != bytes(SIZE - 2048)
    assert len(os.pread(content, SIZE + 1, 0)) == len(empty)
    template.close()
    put(store)
    plain = store.open(KEY)
    assert plain is not None
    before = os.pread(content, SIZE, 0)
    take_top(plain, config)
    assert os.pread(content, SIZE, 0) == before
    plain.close()


def test_holes_stay_holes(tmp_path: Path) -> None:
    with (tmp_path / "from").open("w+b") as source, (tmp_path / "to").open("w+b") as target:
        os.truncate(source.fileno(), 64 * MIB)
        for at in (0, 10 * MIB, 64 * MIB - 4096):
            os.pwrite(source.fileno(), b"data at %d" % at, at)
        copy_sparse(source.fileno(), target.fileno())
        assert (tmp_path / "to").read_bytes() == (tmp_path / "from").read_bytes()
        assert os.fstat(target.fileno()).st_blocks * 512 < MIB


def test_a_damaged_disk_is_seen(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = put(store, top=b"t" * 4096)
    assert store.list()[0].facts.drives == 2
    os.truncate(folder / TOP, 100)
    assert store.open(KEY) is None
    assert not folder.exists()
    folder = put(store, top=b"t" * 4096)
    (folder / TOP).unlink()
    assert store.open(KEY) is None


def test_what_is_asked_for_once_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    assert not store.want(KEY)  # there is not even a folder
    put(store, "cd" * 16)
    assert [store.want(KEY) for _ in range(3)] == [False, True, True]
    store.collect()
    assert store.want(KEY)
    put(store)
    assert not store.want(KEY)  # it was made meanwhile
    monkeypatch.setattr(store_module, "IDLE_SECONDS", -1.0)
    store.collect()
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("word", [Wake(identity=Identity(entropy=b"e" * 32, clock_ns=1)), WORD])
def test_words_to_a_template(word: Wake | Prepare) -> None:
    data = pack(word)
    header, body = data[:HEADER_BYTES], data[HEADER_BYTES:]
    assert body_length(header) == len(body)
    assert unpack(header, body) == word
    with pytest.raises(LinkError, match="damaged"):
        unpack(header, body[:-1] + b"x")
    with pytest.raises(LinkError, match="does not wake"):
        body_length(b"vch-rest" + header[8:])


def test_what_was_prepared_serves_specs_that_ask_for_it() -> None:
    groundwork = Groundwork(ROOT, (NIC,))
    own = NIC.but(mac="02:01:02:03:04:05", found_as=TEMPLATE_MAC)
    spec = Spec(id="x", identity=Identity(entropy=b"", clock_ns=0), root=ROOT, process=Process(args=(b"x",)),
                network=Network(hostname="x", interfaces=(own,)))
    groundwork.check(spec)
    groundwork.check(spec.but(root=ROOT.but(read_only=True)))
    for root in (root_of(3, ()), Root(layers=ROOT.layers)):
        with pytest.raises(TetherError, match="made with"):
            groundwork.check(spec.but(root=root))
    for interfaces in ((), (own, own), (own.but(gateway4="10.0.2.3"),)):
        with pytest.raises(TetherError, match="made with"):
            groundwork.check(spec.but(network=Network(hostname="x", interfaces=interfaces)))
    Groundwork(ROOT).check(spec)
