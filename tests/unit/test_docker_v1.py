"""Archives of Docker before 1.10, as its image specification v1.0 describes them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import imagebuild
from imagebuild.errors import OperationError, SourceError
from imagebuild.oci.platforms import Platform
from imagebuild.sources.open_archive import all_images, open_bundle
from imagebuild.sources.open_source import open_source
from tests.judges import needs_tool
from tests.sample_images import docker_v1_archive, sha256, some_layers, tar_of

AMD64 = Platform.of("linux", "amd64")
LAYERS = some_layers(3)
OTHER = some_layers(1, seed=2)


def _archive(folder: Path, content: bytes) -> Path:
    path = folder / "old.tar"
    path.write_bytes(content)
    return path


def test_the_chain_of_parents_becomes_the_layers(tmp_path: Path) -> None:
    path = _archive(tmp_path, docker_v1_archive({"one:1": LAYERS, "host:5000/two:1": OTHER}))
    with open_source(f"docker-archive:{path}:one:1") as source:
        found = source.resolve(AMD64)
    assert found.names == ("docker.io/library/one:1",)
    assert list(found.config.diff_ids) == [sha256(layer) for layer in LAYERS]
    assert found.config.run.cmd == ("/bin/sh",)
    assert [entry.created_by for entry in found.config.history] == [f"/bin/sh -c #(nop) step {n}" for n in range(3)]
    assert found.config.created == "2014-01-02T03:04:02Z"
    assert not {"id", "parent", "Size", "container_config"} & json.loads(found.config.raw).keys()


def test_all_images_are_loaded_and_the_same_each_time(tmp_path: Path) -> None:
    path = _archive(tmp_path, docker_v1_archive({"one:1": LAYERS, "one:2": LAYERS[:2], "two:1": OTHER}))
    store = imagebuild.Store(tmp_path / "store")
    bundle = open_bundle(str(path))
    digests = [source.resolve(AMD64).digest for source in all_images(bundle)]
    assert digests == [source.resolve(AMD64).digest for source in all_images(bundle)]
    assert len(set(digests)) == 3
    image = imagebuild.pull(f"docker-archive:{path}:one:2", store=store, platform=AMD64)
    assert [layer.diff_id for layer in image.layers] == [sha256(layer) for layer in LAYERS[:2]]


@needs_tool("skopeo")
def test_what_is_saved_of_one_other_tools_read(tmp_path: Path) -> None:
    from imagebuild.transfer.save import Format, save

    path = _archive(tmp_path, docker_v1_archive({"one:1": LAYERS}))
    store = imagebuild.Store(tmp_path / "store")
    image = imagebuild.pull(f"docker-archive:{path}", store=store, platform=AMD64, keep_blobs=True)
    save(store, [image], tmp_path / "new.tar", Format.DOCKER_ARCHIVE)
    command = ["skopeo", "inspect", "--config", f"docker-archive:{tmp_path}/new.tar"]
    seen = subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert json.loads(seen.stdout)["rootfs"]["diff_ids"] == [sha256(layer) for layer in LAYERS]


def _layer(parent: str) -> bytes:
    return json.dumps({"parent": parent, "os": "linux", "architecture": "amd64"}).encode()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/json": _layer("b"), "b/json": _layer("a")}, "the layers below 'a' have no end"),
        ({"a/json": _layer("../../etc")}, r"there is no '\.\./\.\./etc/json'"),
        ({"a/json": _layer("")}, "there is no 'a/layer.tar'"),
        ({"a/json": b"[]"}, "expected an object"),
        ({"a/json": b'{"parent": 7}'}, "parent: expected a string"),
    ],
)
def test_damaged_archives(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    path = _archive(tmp_path, tar_of({"repositories": b'{"one": {"1": "a"}}', **files}))
    with open_source(f"docker-archive:{path}") as source, pytest.raises(OperationError, match=message):
        source.resolve(AMD64)


def test_an_archive_of_nothing(tmp_path: Path) -> None:
    path = _archive(tmp_path, tar_of({"repositories": b"{}"}))
    with open_source(f"docker-archive:{path}") as source, pytest.raises(SourceError, match="there is no image in it"):
        source.resolve(AMD64)
