"""Pulling from registries, real and faulty: what is fetched, what is not, and what is left when it goes wrong."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import imagebuild
from imagebuild import Image, Progress, PullPolicy, RegistrySettings, Store, pull
from imagebuild.digest import digest_of
from imagebuild.errors import AuthError, LayerError, ManifestError, OperationError, RegistryError, StoreError
from imagebuild.store.verify import verify
from imagebuild.transfer.progress import Phase
from tests.fake_registry import FakeRegistry, Fault, fake_registry
from tests.registry_fixture import running_registry
from tests.sample_images import some_layers, write_layout

LAYERS = some_layers(3)
PATIENT = RegistrySettings(attempts=2, stall_timeout_s=60.0, max_retry_after_s=1.0)
IMPATIENT = replace(PATIENT, stall_timeout_s=1.0)  # for a server that stands still


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake_registry() as fake:
        yield fake


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _pull(store: Store, name: str, settings: RegistrySettings = PATIENT, **options: object) -> Image:
    return pull(name, store=store, platform="linux/amd64", settings=settings, **options)  # type: ignore[arg-type]


def _until_nobody_works() -> None:
    deadline = time.monotonic() + 60
    while any("(work)" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_package_is_cheap_to_import() -> None:
    script = "import sys, imagebuild; print(len([m for m in sys.modules if m.startswith(('imagebuild', 'requests'))]))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "1"
    assert set(imagebuild.__all__) == set(imagebuild._HOMES)
    assert all(getattr(imagebuild, name) for name in imagebuild.__all__)
    with pytest.raises(AttributeError):
        _ = imagebuild.nothing


def test_an_image_comes_once(registry: FakeRegistry, store: Store) -> None:
    fake = registry.add_image("app", LAYERS)
    name = f"{registry.address}/app"
    seen: list[Progress] = []
    image = _pull(store, name, progress=seen.append)
    assert image.digest == fake.manifest_digest
    assert image.config.raw == fake.config
    assert image.reference == f"{name}:latest"
    done = [one for one in seen if one.phase is Phase.DONE]
    assert sum(one.total for one in done) == sum(len(layer) for layer in fake.layers)
    requests = len(registry.seen)
    assert _pull(store, name) == image
    assert len(registry.seen) == requests
    assert [one.digest for one in image.layers] == [digest_of(layer) for layer in fake.layers]


def test_only_new_layers_are_fetched(registry: FakeRegistry, store: Store) -> None:
    registry.add_image("app", LAYERS[:2])
    registry.add_image("app", LAYERS, tag="more")
    _pull(store, f"{registry.address}/app")
    before = registry.count("GET", "/blobs/")
    seen: list[Progress] = []
    _pull(store, f"{registry.address}/app:more", progress=seen.append)
    assert registry.count("GET", "/blobs/") - before == 2  # the config and one layer
    assert [one.phase for one in seen].count(Phase.PRESENT) == 2


def test_what_the_store_has_is_only_asked_for(tmp_path: Path) -> None:
    """A folder is looked at each time; what it has is brought again only if something of it is not in the store."""
    folder = write_layout(tmp_path / "layout", {"one": some_layers(2, 1000)})
    store = Store(tmp_path / "store")
    name = f"oci:{folder}:one"

    def changed() -> bool:
        before = store.record_path(image.digest).stat().st_ino if store.record_path(image.digest).exists() else 0
        assert pull(name, store=store, platform="linux/amd64") == image
        return store.record_path(image.digest).stat().st_ino != before

    image = pull(name, store=store, platform="linux/amd64")
    assert not changed()
    store.untag(name)
    assert changed()
    image.layers[0].path.unlink()
    assert changed()
    store.record_path(image.digest).write_text("damaged")
    assert changed()
    assert pull(name, store=store, platform="linux/amd64", verity=True).layers[0].verity_root
    assert changed()
    assert not changed()
    assert store.named(name) == image.digest


def test_policies(registry: FakeRegistry, store: Store) -> None:
    name = f"{registry.address}/app"
    registry.add_image("app", LAYERS[:1])
    with pytest.raises(StoreError, match="not in the store"):
        _pull(store, name, policy=PullPolicy.NEVER)
    first = _pull(store, name)
    fake = registry.add_image("app", LAYERS[:2])
    assert _pull(store, name).digest == first.digest
    assert _pull(store, name, policy=PullPolicy.NEVER).digest == first.digest
    assert _pull(store, name, policy=PullPolicy.ALWAYS).digest == fake.manifest_digest
    assert _pull(store, first.id[7:19], policy=PullPolicy.NEVER).digest == first.digest


def test_a_digest_names_an_image(registry: FakeRegistry, store: Store) -> None:
    fake = registry.add_image("app", LAYERS[:1])
    name = f"{registry.address}/app:latest@{fake.manifest_digest}"
    assert _pull(store, name).digest == fake.manifest_digest
    requests = len(registry.seen)
    assert _pull(store, name).digest == fake.manifest_digest
    assert len(registry.seen) == requests
    assert list(store.tags()) == [f"{registry.address}/app@{fake.manifest_digest}"]


def test_another_platform_is_another_image(registry: FakeRegistry, store: Store) -> None:
    registry.add_image("app", LAYERS[:1], architecture="arm64")
    name = f"{registry.address}/app"
    with pytest.raises(ManifestError, match="linux/arm64 only"):
        _pull(store, name)
    assert pull(name, store=store, platform="arm64").config.platform.architecture == "arm64"
    with pytest.raises(ManifestError):
        _pull(store, name)  # what is here is for arm64


def test_blobs_are_kept_on_request(registry: FakeRegistry, store: Store) -> None:
    fake = registry.add_image("app", LAYERS)
    name = f"{registry.address}/app"
    _pull(store, name)
    assert not store.has_blob(digest_of(fake.layers[0]))
    _pull(store, name, keep_blobs=True)
    for layer in fake.layers:
        assert store.blob_path(digest_of(layer)).read_bytes() == layer
    assert verify(store) == []


def test_a_layer_that_was_lost_is_fetched_again(registry: FakeRegistry, store: Store) -> None:
    registry.add_image("app", LAYERS)
    image = _pull(store, f"{registry.address}/app")
    image.layers[1].path.unlink()
    assert store.is_whole(_pull(store, f"{registry.address}/app"))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.CORRUPT, LayerError),
        (Fault.SHORT, RegistryError),
        (Fault.LONG, RegistryError),
        (Fault.TRUNCATE, RegistryError),
        (Fault.RESET, RegistryError),
        (Fault.STALL, RegistryError),
        (Fault.STATUS, RegistryError),
    ],
)
def test_a_faulty_blob_leaves_the_store_sound(
    fault: Fault, error: type[OperationError], registry: FakeRegistry, store: Store
) -> None:
    fake = registry.add_image("app", LAYERS)
    name = f"{registry.address}/app"
    registry.fail("GET", digest_of(fake.layers[1]), fault, times=99)
    with pytest.raises(error):
        _pull(store, name, settings=IMPATIENT if fault is Fault.STALL else PATIENT)
    _until_nobody_works()  # tasks are told to stop, and waited for briefly
    assert verify(store) == []
    assert store.find(name) is None
    assert list(store.folder("tmp").iterdir()) == []
    registry._plans.clear()
    seen: list[Progress] = []
    assert store.is_whole(_pull(store, name, progress=seen.append))
    assert digest_of(fake.layers[1]) in {one.digest for one in seen if one.phase is Phase.DONE}


def test_a_break_is_not_even_noticed(registry: FakeRegistry, store: Store) -> None:
    fake = registry.add_image("app", LAYERS)
    registry.fail("GET", digest_of(fake.layers[1]), Fault.RESET_MIDWAY, times=1)
    assert store.is_whole(_pull(store, f"{registry.address}/app"))


def test_one_failing_layer_stops_the_others_at_once(registry: FakeRegistry, store: Store) -> None:
    fake = registry.add_image("app", some_layers(3, 500_000))
    for layer in fake.layers[:2]:
        registry.fail("GET", digest_of(layer), Fault.DRIP, times=99)
    registry.fail("GET", digest_of(fake.layers[2]), Fault.STATUS, times=99, status=404)
    began = time.monotonic()
    with pytest.raises(RegistryError):
        _pull(store, f"{registry.address}/app")
    assert time.monotonic() - began < 100  # what drips would take hours


def test_a_config_that_lies_about_its_layers(store: Store, tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"one": LAYERS[:1]})
    other = write_layout(tmp_path / "other", {"one": LAYERS[1:2]})
    index = json.loads((folder / "index.json").read_bytes())
    manifest = _blob(folder, index["manifests"][0]["digest"])
    wrong = json.loads((other / "index.json").read_bytes())["manifests"][0]["digest"]
    layers = json.loads(_blob(other, wrong))["layers"]
    document = json.loads(manifest) | {"layers": layers}
    (folder / "blobs/sha256" / layers[0]["digest"][7:]).write_bytes(_blob(other, layers[0]["digest"]))
    raw = json.dumps(document).encode()
    (folder / "blobs/sha256" / digest_of(raw)[7:]).write_bytes(raw)
    index["manifests"][0] |= {"digest": digest_of(raw), "size": len(raw)}
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(LayerError, match="its config promises"):
        pull(f"oci:{folder}", store=store, platform="linux/amd64")
    assert list(store.folder("layers").iterdir()) == []


def _blob(folder: Path, digest: str) -> bytes:
    return (folder / "blobs/sha256" / digest[7:]).read_bytes()


def test_an_unreachable_registry_is_named(store: Store) -> None:
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:1"):
        _pull(store, "127.0.0.1:1/app")


def test_ctrl_c_ends_a_pull_and_leaves_nothing(registry: FakeRegistry, tmp_path: Path) -> None:
    fake = registry.add_image("app", LAYERS)
    registry.fail("GET", digest_of(fake.layers[1]), Fault.DRIP, times=99)
    # One write for a line: several threads report, and print() would let one's word come between another's and its end.
    script = (
        "import os, sys, imagebuild, pathlib\n"
        "imagebuild.pull(sys.argv[1], store=imagebuild.Store(pathlib.Path(sys.argv[2])), platform='linux/amd64',\n"
        "                progress=lambda p: os.write(1, p.phase.name.encode() + b'\\n'))\n"
    )
    command = [sys.executable, "-c", script, f"{registry.address}/app", str(tmp_path / "store")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    assert b"RUNNING\n" in iter(child.stdout.readline, b"")
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGINT
    store = Store(tmp_path / "store")
    assert list(store.folder("leases").iterdir()) == []
    assert verify(store) == []


# --- a registry that we did not write --------------------------------------------------------------------------------


def _serve(address: str, folder: Path) -> None:
    command = ["skopeo", "copy", "--insecure-policy", "--override-arch=amd64", "--dest-tls-verify=false"]
    done = subprocess.run(
        [*command, f"oci:{folder}:one", f"docker://{address}/app:one"], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"skopeo cannot push: {done.stderr.decode()[-200:]}")


def test_debians_registry(store: Store, tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"one": LAYERS})
    with running_registry(tmp_path) as address:
        _serve(address, folder)
        image = _pull(store, f"{address}/app:one")
        with pytest.raises(OperationError):
            _pull(store, f"{address}/app:two")
    assert [layer.diff_id for layer in image.layers] == list(image.config.diff_ids)
    with pytest.raises(RegistryError):
        _pull(store, f"{address}/app:one", policy=PullPolicy.ALWAYS)
    assert store.is_whole(_pull(store, f"{address}/app:one"))


def test_debians_registry_with_a_password(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    with running_registry(tmp_path, auth="basic") as address, pytest.raises(AuthError):
        _pull(store, f"{address}/app")


def test_workers_do_not_outlive_the_pull(registry: FakeRegistry, store: Store) -> None:
    registry.add_image("app", LAYERS)
    _pull(store, f"{registry.address}/app")
    _until_nobody_works()
    assert os.listdir(store.folder("tmp")) == []
