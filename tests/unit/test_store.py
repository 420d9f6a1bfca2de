"""The store: names, records, leases, collection, verification; and kills at every step of adding an image."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imagebuild import Image, PullPolicy, Store, pull
from imagebuild.errors import ImageNameError, OperationError, StoreError
from imagebuild.locks import locked, try_lock
from imagebuild.store.collector import collect, remove
from imagebuild.store.usage import usage
from imagebuild.store.verify import verify
from tests.sample_images import some_layers, write_layout

LAYERS = some_layers(2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _image(store: Store, tmp_path: Path, seed: int = 1, count: int = 2, name: str = "") -> Image:
    folder = write_layout(tmp_path / f"layout-{seed}-{count}", {"one": some_layers(count, seed=seed)})
    image = pull(f"oci:{folder}:one", store=store, platform="linux/amd64")
    if name:
        store.tag(name, image)
        store.untag(image.reference)
        return store.get(image.digest, name)
    return image


def _in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked child; how it ended, as ``waitpid`` says."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a child must not go on as the test program
            os._exit(1)
    return os.waitpid(child, 0)[1]


def test_an_image_is_found_by_name_id_and_digest(store: Store, tmp_path: Path) -> None:
    image = _image(store, tmp_path, name="app")
    for name in (
        "app",
        "app:latest",
        "docker.io/library/app",
        image.id,
        image.id[7:19],
        image.digest,
        image.digest[7:20],
    ):
        found = store.find(name)
        assert found is not None, name
        assert found.digest == image.digest
    assert store.find("other") is None
    assert store.find("abc") is None
    assert store.tags() == {"docker.io/library/app:latest": image.digest}


def test_layers_are_files_that_fsck_accepts(store: Store, tmp_path: Path) -> None:
    image = _image(store, tmp_path)
    assert [layer.diff_id for layer in image.layers] == list(image.config.diff_ids)
    for layer in image.layers:
        assert layer.disk_size == layer.path.stat().st_size > 0
        if Path("/usr/bin/fsck.erofs").exists():
            subprocess.run(["fsck.erofs", layer.path], check=True, capture_output=True)


def test_a_layer_that_is_there_twice_is_stacked_once(store: Store, tmp_path: Path) -> None:
    bottom, top = LAYERS
    folder = write_layout(tmp_path / "layout", {"one": [bottom, top, bottom]})
    image = pull(f"oci:{folder}", store=store, platform="linux/amd64")
    assert [layer.diff_id for layer in image.layers] == [image.config.diff_ids[1], image.config.diff_ids[2]]
    assert image.disk().exists()


def _linking_layer() -> bytes:
    """A layer with a hard link to a file of a lower layer, and a file in a directory that only the lower one has."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        link = tarfile.TarInfo("etc/link")
        link.type, link.linkname = tarfile.LNKTYPE, "etc/file-1-0"
        archive.addfile(link)
    return stream.getvalue()


def test_a_layer_that_needs_the_lower_ones_gets_a_patch(store: Store, tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"one": [LAYERS[0], _linking_layer(), LAYERS[1]]})
    image = pull(f"oci:{folder}", store=store, platform="linux/amd64")
    assert [bool(layer.digest) for layer in image.layers] == [True, True, False, True]
    assert image.disk().read_text().count("RW") == 6
    assert verify(store) == []
    assert collect(store).freed == 0
    files = store.record(image).files()
    again = pull(f"oci:{folder}", store=store, platform="linux/amd64")
    assert store.record(again).files() == files
    image.layers[2].path.unlink()
    assert not store.is_whole(image)
    assert verify(store) != []
    assert store.is_whole(pull(f"oci:{folder}", store=store, platform="linux/amd64"))


def test_a_hash_tree_on_request(store: Store, tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"one": LAYERS})
    name = f"oci:{folder}"
    plain = pull(name, store=store, platform="linux/amd64")
    assert {layer.verity_root for layer in plain.layers} == {""}
    image = pull(name, store=store, platform="linux/amd64", verity=True)
    for layer, bare in zip(image.layers, plain.layers, strict=True):
        assert len(layer.verity_root) == 64
        assert layer.data_size == bare.data_size == bare.disk_size < layer.disk_size
        if veritysetup := shutil.which("veritysetup"):
            paths = [str(layer.path), str(layer.path)]
            command = [veritysetup, "verify", f"--hash-offset={layer.data_size}", *paths, layer.verity_root]
            subprocess.run(command, check=True, capture_output=True)
    assert image.disk() != plain.disk()
    assert pull(name, store=store, policy=PullPolicy.NEVER, platform="linux/amd64", verity=True) == image
    collect(store)
    assert not store.is_whole(plain)


def test_equal_stacks_share_a_disk(store: Store, tmp_path: Path) -> None:
    image = _image(store, tmp_path)
    assert image.disk() == image.disk()
    subprocess.run(["qemu-img", "check", image.disk()], check=True, capture_output=True)
    again = store.get(image.digest)
    assert again.disk() == image.disk()


def test_bad_names_are_refused(store: Store, tmp_path: Path) -> None:
    image = _image(store, tmp_path)
    with pytest.raises(StoreError, match="no image has this name"):
        store.untag("nothing")
    with pytest.raises(ImageNameError):
        pull("Bad Name", store=store)
    with pytest.raises(StoreError, match="not in the store"):
        store.get("sha256:" + "0" * 64)
    with pytest.raises(StoreError):
        store.blob_path("sha256:../../etc/passwd")
    assert store.find("../../x") is None
    assert image.digest in store.tags().values()


def test_a_store_of_another_format_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path / "store")
    (tmp_path / "store" / "format").write_text("99\n")
    with pytest.raises(StoreError, match="its format is 99"):
        Store(tmp_path / "store")


# --- collection ------------------------------------------------------------------------------------------------------


def test_only_what_nobody_needs_is_collected(store: Store, tmp_path: Path) -> None:
    kept, doomed = _image(store, tmp_path, 1, 3, "kept"), _image(store, tmp_path, 1, 2, "doomed")
    other = _image(store, tmp_path, 2, 1, "other")
    doomed.disk()
    store.untag("doomed")
    store.untag("other")
    done = collect(store)
    assert sorted(done.images) == sorted([doomed.digest, other.digest])
    assert [key[7:] for key in done.layers] == [other.layers[0].path.name.removesuffix(".erofs")[7:]]
    assert len(done.disks) == 1
    assert done.freed > 20_000
    assert store.is_whole(kept)
    assert verify(store) == []
    assert collect(store).freed == 0


def test_images_without_a_name_may_stay(store: Store, tmp_path: Path) -> None:
    image = _image(store, tmp_path)
    store.untag(image.reference)
    assert collect(store, dangling=False).images == []
    assert collect(store).images == [image.digest]


def test_a_pinned_image_stays(store: Store, tmp_path: Path) -> None:
    image = _image(store, tmp_path)
    disk = image.disk()
    with store.pin(image):
        store.untag(image.reference)
        assert collect(store).freed == 0
        assert disk.exists()
        assert store.is_whole(image)
    assert collect(store).images == [image.digest]
    with pytest.raises(StoreError, match="not in the store"):
        store.pin(image)


def test_a_pin_ends_with_the_last_process_that_has_it(store: Store, tmp_path: Path) -> None:
    image = _image(store, tmp_path)
    lease = store.pin(image)
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lease.fileno()])
    lease.detach()
    store.untag(image.reference)
    assert collect(store).images == []
    sleeper.kill()
    sleeper.wait()
    assert collect(store).images == [image.digest]
    assert not any(store.folder("leases").iterdir())


def test_a_hold_outlives_its_process(store: Store, tmp_path: Path) -> None:
    image = _image(store, tmp_path)
    assert _in_child(lambda: store.hold("container 1", image)) == 0
    store.untag(image.reference)
    assert collect(store).images == []
    assert store.holds() == {"container 1": image.digest}
    store.release("container 1")
    store.release("container 1")
    assert collect(store).images == [image.digest]


def test_remove(store: Store, tmp_path: Path) -> None:
    image = _image(store, tmp_path, name="one")
    store.tag("two", image)
    with pytest.raises(StoreError, match="it has 2 names"):
        remove(store, image.id)
    assert remove(store, "one").deleted == ""
    with store.pin(image), pytest.raises(StoreError, match="in use by a running machine"):
        remove(store, "two")
    with store.pin(image):
        assert remove(store, "two", force=True).untagged == ("docker.io/library/two:latest",)
        assert store.is_whole(image)
    collect(store)
    assert not store.is_whole(image)
    with pytest.raises(StoreError, match="no such image"):
        remove(store, "two")


def test_nothing_is_collected_while_a_record_is_damaged(store: Store, tmp_path: Path) -> None:
    image, other = _image(store, tmp_path), _image(store, tmp_path, 2, 1)
    store.untag(other.reference)
    store.record_path(image.digest).write_bytes(b"{")
    with pytest.raises(StoreError, match="damaged"):
        collect(store)
    assert store.is_whole(image)
    assert store.is_whole(other)
    verify(store, repair=True)
    collect(store)
    assert not store.is_whole(image)


def test_usage_adds_up(store: Store, tmp_path: Path) -> None:
    _image(store, tmp_path, 1, 2, "small"), _image(store, tmp_path, 1, 3, "large")
    found = usage(store)
    small, large = found.images
    assert small.names == ("docker.io/library/small:latest",)
    assert large.total > small.total > small.unique
    assert large.unique >= 20_000
    assert found.layers + found.blobs == sum(i.unique for i in found.images) + (small.total - small.unique)
    assert found.unneeded == 0
    store.untag("large")
    assert usage(store).unneeded == large.unique


# --- verification ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["layer", "short layer", "blob", "record", "tag", "disk", "facts"])
def test_damage_is_found_and_repaired(what: str, store: Store, tmp_path: Path) -> None:
    image = _image(store, tmp_path)
    disk = image.disk()
    assert verify(store) == []
    path = {
        "layer": image.layers[0].path,
        "short layer": image.layers[0].path,
        "blob": store.blob_path(image.digest),
        "record": store.record_path(image.digest),
        "tag": store.name_path("tags", image.reference),
        "disk": disk,
        "facts": store.facts_path(image.layers[0].path.name.removesuffix(".erofs")),
    }[what]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content[:-1] if what == "short layer" else b"{" if what in ("record", "tag", "facts") else content)
    assert verify(store) != []
    verify(store, repair=True)
    again = _image(store, tmp_path)
    verify(store, repair=True)
    assert verify(store) == []
    assert again.digest == image.digest
    assert store.is_whole(again)
    assert again.disk().exists()


# --- kills and company -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "rename", "open"])
def test_killed_at_any_call_the_store_stays_sound(call: str, tmp_path: Path) -> None:
    """Kill a pull at its n-th call of fsync, rename or open, for growing n, until one comes through."""
    folder = write_layout(tmp_path / "layout", {"one": LAYERS})
    name = f"oci:{folder}:one"
    step = 7 if call == "open" else 1
    for survived in range(1, 400, step):
        store = Store(tmp_path / "store")

        def work(left: int = survived, store: Store = store) -> None:
            original = getattr(os, call)

            def counted(*arguments: object, **more: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **more)

            setattr(os, call, counted)
            pull(name, store=store, platform="linux/amd64").disk()

        status = _in_child(work)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        assert verify(store) == []
        found = store.find(name)
        assert found is None or store.is_whole(found)
        if not os.WIFSIGNALED(status):
            break
        if survived % 2:
            collect(store)
            assert list(store.folder("tmp").iterdir()) == []
    else:
        pytest.fail("no pull came through")
    assert found is not None
    assert survived > 1, "the call was never counted"


def test_many_processes_pull_the_same_image_and_the_collector_runs(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"one": some_layers(6, 200_000)})
    store = Store(tmp_path / "store")
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                image = pull(f"oci:{folder}", store=store, platform="linux/amd64")
                with store.pin(image):
                    os._exit(0 if image.disk().exists() and store.is_whole(image) else 2)
            except BaseException:  # noqa: BLE001 - as above
                os._exit(1)
        children.append(child)
    while children:
        collect(store)
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in children:
            assert status == 0
            children.remove(child)
    assert verify(store) == []
    assert len(list(store.folder("layers").glob("*.erofs"))) == 6


def test_a_layer_is_converted_once(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"one": some_layers(3, 1_000_000)})
    store = Store(tmp_path / "store")
    done: list[str] = []
    threads = [
        threading.Thread(
            target=pull,
            args=(f"oci:{folder}",),
            kwargs={"store": store, "platform": "linux/amd64", "progress": lambda p: done.append(p.phase.name)},
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done.count("DONE") == 3
    assert done.count("PRESENT") == 6


def test_a_full_disk_is_explained_and_nothing_is_left(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"one": some_layers(1, 3_000_000)})
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        store = Store(small / "store")
        with pytest.raises(StoreError, match="No space left on device.*gc"):
            pull(f"oci:{folder}", store=store, platform="linux/amd64")
        assert verify(store) == []
        assert list(store.folder("layers").iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=16m", str(small)], check=True)
        assert pull(f"oci:{folder}", store=store, platform="linux/amd64").disk().exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_folder_one_may_not_write_is_explained() -> None:
    with pytest.raises(OperationError, match="VCH_HOME"):
        Store(Path("/proc/1/store"))


def test_locks_exclude_and_are_asked_for_patiently(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    waits = []
    with locked(path):
        assert try_lock(path) is None

        def release_soon() -> None:
            waits.append(time.monotonic())
            if len(waits) > 2:
                raise TimeoutError

        with pytest.raises(TimeoutError), locked(path, waiting=release_soon):
            pass
    with locked(path, shared=True), locked(path, shared=True):
        assert try_lock(path) is None
    path.unlink()
    assert try_lock(path, create=False) is None
