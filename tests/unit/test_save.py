"""Saved, pushed and imported images, judged by skopeo, umoci and the registry, and by reading them back."""

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from imagebuild import Image, Reference, RegistrySettings, Store, pull
from imagebuild.digest import digest_of
from imagebuild.errors import LayerError, OperationError, SourceError, StoreError
from imagebuild.store.collector import collect, remove
from imagebuild.store.verify import verify
from imagebuild.transfer.import_image import import_image
from imagebuild.transfer.push import push
from imagebuild.transfer.save import Format, save
from tests.fake_registry import FakeRegistry, fake_registry
from tests.registry_fixture import running_registry
from tests.sample_images import sha256, some_layers, tar_of, write_layout

LAYERS = some_layers(3)
needs_skopeo = pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake_registry() as fake:
        yield fake


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _kept(store: Store, tmp_path: Path, name: str = "app:1", seed: int = 1) -> Image:
    folder = write_layout(tmp_path / f"layout-{seed}", {"one": some_layers(3, seed=seed)})
    image = pull(f"oci:{folder}:one", store=store, platform="linux/amd64", keep_blobs=True)
    store.tag(name, image)
    store.untag(image.reference)
    found = store.find(name)
    assert found is not None
    return found


def _skopeo(*words: str) -> str:
    return subprocess.run(["skopeo", *words], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("form", list(Format))
def test_what_is_saved_can_be_loaded(form: Format, store: Store, tmp_path: Path) -> None:
    image = _kept(store, tmp_path)
    path = tmp_path / "saved"
    save(store, [image], path, form)
    other = Store(tmp_path / "other")
    again = pull(f"{form.value}:{path}", store=other, platform="linux/amd64")
    assert again.digest == image.digest
    assert again.reference == "docker.io/library/app:1"
    assert [a.path.read_bytes() for a in again.layers] == [b.path.read_bytes() for b in image.layers]
    assert sorted(p.name for p in tmp_path.iterdir() if "part" in p.name) == []


@needs_skopeo
@pytest.mark.parametrize("form", list(Format))
def test_skopeo_reads_what_is_saved(form: Format, store: Store, tmp_path: Path) -> None:
    image, path = _kept(store, tmp_path), tmp_path / "saved"
    save(store, [image], path, form)
    config = json.loads(_skopeo("--override-arch=amd64", "inspect", "--config", f"{form.value}:{path}"))
    assert config["rootfs"]["diff_ids"] == list(image.config.diff_ids)
    _skopeo("--override-arch=amd64", "--insecure-policy", "copy", f"{form.value}:{path}", f"dir:{tmp_path / 'copied'}")


@pytest.mark.skipif(not shutil.which("umoci"), reason="needs umoci")
def test_umoci_unpacks_what_is_saved(store: Store, tmp_path: Path) -> None:
    image, path = _kept(store, tmp_path), tmp_path / "saved"
    save(store, [image], path, Format.OCI)
    command = ["umoci", "unpack", "--rootless", "--image", f"{path}:1", str(tmp_path / "bundle")]
    subprocess.run(command, check=True, capture_output=True)
    assert len(list((tmp_path / "bundle/rootfs/etc").iterdir())) == 3


def test_two_images_share_layers_in_an_archive(store: Store, tmp_path: Path) -> None:
    one, two = _kept(store, tmp_path), _kept(store, tmp_path, "app:2", seed=2)
    save(store, [one, two, one], tmp_path / "saved")
    with tarfile.open(tmp_path / "saved") as archive:
        names = archive.getnames()
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        assert [entry["RepoTags"] for entry in json.load(manifest)] == [["app:1"], ["app:2"]]
    assert len(names) == len(set(names))


def test_saving_twice_gives_the_same_bytes(store: Store, tmp_path: Path) -> None:
    image = _kept(store, tmp_path)
    contents = []
    for _ in range(2):
        stream = io.BytesIO()
        save(store, [image], stream)
        contents.append(stream.getvalue())
    assert contents[0] == contents[1]


def test_layers_that_were_not_kept_are_fetched_again(registry: FakeRegistry, store: Store, tmp_path: Path) -> None:
    fake = registry.add_image("app", LAYERS)
    image = pull(f"{registry.address}/app", store=store, platform="linux/amd64")
    save(store, [image], tmp_path / "saved")
    with tarfile.open(tmp_path / "saved") as archive:
        names = set(archive.getnames())
    assert {"blobs/sha256/" + digest_of(layer)[7:] for layer in fake.layers} <= names


def test_loading_a_copy_does_not_lose_the_origin(registry: FakeRegistry, store: Store, tmp_path: Path) -> None:
    registry.add_image("app", LAYERS)
    image = pull(f"{registry.address}/app", store=store, platform="linux/amd64")
    origin = store.record(image).origin
    save(store, [image], tmp_path / "saved")
    again = pull(f"docker-archive:{tmp_path / 'saved'}", store=store, platform="linux/amd64")
    assert again.digest == image.digest
    assert store.record(again).origin == origin != ""


def test_a_layer_that_changed_meanwhile_spoils_nothing(registry: FakeRegistry, store: Store, tmp_path: Path) -> None:
    fake = registry.add_image("app", LAYERS)
    image = pull(f"{registry.address}/app", store=store, platform="linux/amd64")
    digest = digest_of(fake.layers[1])
    registry.blobs[digest] = bytes(len(fake.layers[1]))
    with pytest.raises(LayerError, match="another digest"):
        save(store, [image], tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert sorted(os.listdir(tmp_path)) == ["store"]


def test_what_cannot_be_had_is_said_before_anything_is_written(store: Store, tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"one": LAYERS})
    image = pull(f"oci:{folder}", store=store, platform="linux/amd64")
    with pytest.raises(StoreError, match=r"3 of its layers were not kept.*--keep-blobs"):
        save(store, [image], tmp_path / "saved")
    (tmp_path / "there").write_text("precious")
    with pytest.raises(StoreError, match="exists already"):
        save(store, [_kept(store, tmp_path)], tmp_path / "there")
    assert (tmp_path / "there").read_text() == "precious"


# --- push ------------------------------------------------------------------------------------------------------------


def test_push_to_debians_registry(store: Store, tmp_path: Path) -> None:
    image = _kept(store, tmp_path)
    with running_registry(tmp_path) as address:
        name = f"{address}/team/app:1"
        assert push(store, image, Reference.parse(name)) == image.digest
        other = Store(tmp_path / "other")
        assert pull(name, store=other, platform="linux/amd64").digest == image.digest
        remove(store, "app:1")
        again = pull(name, store=store, platform="linux/amd64")
        assert push(store, again, Reference.parse(f"{address}/elsewhere:2")) == image.digest


def test_push_sends_only_what_is_missing(registry: FakeRegistry, store: Store, tmp_path: Path) -> None:
    registry.add_image("app", LAYERS)
    image = pull(f"{registry.address}/app", store=store, platform="linux/amd64")
    before = registry.count("GET", "/blobs/")
    push(store, image, Reference.parse(f"{registry.address}/copy:1"), settings=RegistrySettings(attempts=2))
    assert registry.count("GET", "/blobs/") == before  # mounted from where they are
    assert registry.count("PUT", "/manifests/") == 1
    assert list(store.folder("tmp").iterdir()) == []


# --- import ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
def test_import_makes_an_image_of_a_tar(pack: "object", store: Store, tmp_path: Path) -> None:
    tar = tar_of({"bin/": b"", "bin/sh": b"#!", "etc/passwd": b"root:x:0:0::/:/bin/sh\n"})
    changes = ['CMD ["/bin/sh", "-l"]', "ENTRYPOINT run me", "ENV A=1 B='two words'", "ENV OLD way of it", "user app"]
    changes += ["EXPOSE 80 53/udp", 'VOLUME ["/data"]', "WORKDIR /srv", "STOPSIGNAL SIGINT", "LABEL a=b"]
    file = io.BytesIO(pack(tar))  # type: ignore[operator]
    image = import_image(store, file, names=["docker.io/library/base:1"], changes=changes, comment="mine", now=0)
    assert image.config.diff_ids == (sha256(tar),)
    run = image.config.run
    assert run.cmd == ("/bin/sh", "-l")
    assert run.entrypoint == ("/bin/sh", "-c", "run me")
    assert run.env == ("A=1", "B=two words", "OLD=way of it")
    assert (run.user, run.working_dir, run.stop_signal) == ("app", "/srv", "SIGINT")
    assert (run.exposed_ports, run.volumes) == (("53/udp", "80/tcp"), ("/data",))
    assert image.config.created == "1970-01-01T00:00:00Z"
    assert store.find("base:1") is not None
    assert verify(store) == []
    save(store, [image], tmp_path / "saved")
    assert pull(f"docker-archive:{tmp_path / 'saved'}", store=Store(tmp_path / "o")).digest == image.digest
    assert collect(store).freed == 0


def test_importing_the_same_twice_is_one_layer(store: Store) -> None:
    tar = tar_of({"file": b"content"})
    for _ in range(2):
        import_image(store, io.BytesIO(tar), now=0)
    assert len(list(store.folder("layers").glob("*.erofs"))) == 1
    assert len(store.records()) == 1


def test_what_cannot_be_imported_is_refused(store: Store) -> None:
    with pytest.raises(SourceError, match="is empty"):
        import_image(store, io.BytesIO())
    with pytest.raises(LayerError):
        import_image(store, io.BytesIO(b"no tar" * 1000))
    with pytest.raises(SourceError, match="no instruction"):
        import_image(store, io.BytesIO(tar_of({})), changes=["RUN rm -rf /"])
    with pytest.raises(OperationError):
        import_image(store, io.BytesIO(tar_of({})), changes=["ENV A='open"])
    assert store.records() == []
    assert list(store.folder("tmp").iterdir()) == []
