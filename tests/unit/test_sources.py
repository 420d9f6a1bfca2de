"""Images from folders, archives and pipes, as several tools write them; hostile and broken ones are refused."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard

from imagebuild.errors import ManifestError, OperationError, SourceError
from imagebuild.oci.platforms import Platform
from imagebuild.sources.open_archive import all_images, open_bundle
from imagebuild.sources.open_source import open_source
from imagebuild.sources.spelling import is_local
from imagebuild.sources.tar_bundle import TarBundle
from tests.sample_images import (
    layout_files,
    new_docker_archive,
    old_docker_archive,
    sha256,
    some_layers,
    tar_of,
    write_layout,
)

AMD64 = Platform.of("linux", "amd64")
LAYERS = some_layers(2)


def _resolve(spelled: str) -> tuple[tuple[str, ...], list[str]]:
    """The names of an image, and the digests of its unpacked layers as its blobs really have them."""
    with open_source(spelled) as source:
        image = source.resolve(AMD64)
        contents = []
        for layer in image.manifest.layers:
            with source.blob(layer) as chunks:
                blob = b"".join(chunks)
            assert sha256(blob) == layer.digest
            assert len(blob) == layer.size
            contents.append(sha256(gzip.decompress(blob) if blob.startswith(b"\x1f\x8b") else blob))
        assert contents == list(image.config.diff_ids)
        return image.names, contents


def _save(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_what_is_local() -> None:
    assert is_local("-")
    assert is_local("oci:folder")
    assert is_local("docker-archive:file:name")
    assert not is_local("busybox")
    assert not is_local("localhost:5000/oci:1")


def test_an_oci_layout(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"one": LAYERS, "two": some_layers(1, seed=2)})
    names, contents = _resolve(f"oci:{folder}:one")
    assert names == (f"oci:{folder}:one",)
    assert contents == [sha256(layer) for layer in LAYERS]
    with pytest.raises(SourceError, match=r"there are 2 images \(name one of one, two\)"):
        _resolve(f"oci:{folder}")
    with pytest.raises(SourceError, match=r"there is no 'three' \(it has one, two\)"):
        _resolve(f"oci:{folder}:three")


def test_a_folder_whose_name_has_colons(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "a:b", {"one": LAYERS})
    assert _resolve(f"oci:{folder}")[1] == _resolve(f"oci:{folder}:one")[1]


@pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo")
def test_what_skopeo_writes(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"one": LAYERS})
    expected = [sha256(layer) for layer in LAYERS]
    for target in (f"oci-archive:{tmp_path}/a.tar:v1", f"docker-archive:{tmp_path}/d.tar:some/name:v1"):
        command = ["skopeo", "copy", "--insecure-policy", "--override-arch", "amd64", f"oci:{folder}:one", target]
        subprocess.run(command, check=True, capture_output=True)
    assert _resolve(f"oci-archive:{tmp_path}/a.tar") == ((f"oci-archive:{tmp_path}/a.tar",), expected)
    assert _resolve(f"oci-archive:{tmp_path}/a.tar:v1")[1] == expected
    assert _resolve(f"docker-archive:{tmp_path}/d.tar") == (("docker.io/some/name:v1",), expected)


@pytest.mark.skipif(not shutil.which("umoci"), reason="needs umoci")
def test_what_umoci_writes(tmp_path: Path) -> None:
    def umoci(*words: str) -> None:
        subprocess.run(["umoci", *words], check=True, capture_output=True)

    layout = tmp_path / "layout"
    umoci("init", "--layout", str(layout))
    umoci("new", "--image", f"{layout}:v1")
    _save(tmp_path / "layer.tar", LAYERS[0])
    umoci("raw", "add-layer", "--image", f"{layout}:v1", str(tmp_path / "layer.tar"))
    umoci("config", "--image", f"{layout}:v1", "--architecture", "amd64")
    assert _resolve(f"oci:{layout}:v1")[1] == [sha256(LAYERS[0])]


def test_an_old_docker_archive(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.tar", old_docker_archive({"one:1": LAYERS, "two:1": some_layers(1, seed=2)}))
    assert _resolve(f"docker-archive:{path}:one:1") == (("docker.io/library/one:1",), [sha256(x) for x in LAYERS])
    with pytest.raises(SourceError, match="2 images in it match"):
        _resolve(f"docker-archive:{path}")
    with pytest.raises(SourceError, match=r"no image in it is called 'x' \(it has docker.io/library/one:1, "):
        _resolve(f"docker-archive:{path}:x")


def test_an_archive_without_a_manifest_gets_the_same_digest_each_time(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.tar", old_docker_archive({"one:1": LAYERS}))
    digests = set()
    for _ in range(2):
        with open_source(f"docker-archive:{path}") as source:
            digests.add(source.resolve(AMD64).digest)
    assert len(digests) == 1


def test_a_new_docker_archive_keeps_its_own_manifest(tmp_path: Path) -> None:
    content = new_docker_archive("one:1", LAYERS)
    path = _save(tmp_path / "a.tar", content)
    assert _resolve(f"docker-archive:{path}")[0] == ("docker.io/library/one:1",)
    with open_source(f"docker-archive:{path}") as source, tarfile.open(path) as archive:
        index = archive.extractfile("index.json")
        assert index is not None
        assert source.resolve(AMD64).digest == json.load(index)["manifests"][0]["digest"]


def test_layers_that_are_links_to_other_layers(tmp_path: Path) -> None:
    """Docker before 25 writes a layer once and links to it where images share it."""
    stream = io.BytesIO()
    original = io.BytesIO(old_docker_archive({"one:1": [LAYERS[0], LAYERS[0]]}))
    with tarfile.open(fileobj=original) as old, tarfile.open(fileobj=stream, mode="w") as new:
        for member in old:
            if member.name == "manifest.json":
                content = json.loads(old.extractfile(member).read())  # type: ignore[union-attr]
                content[0]["Layers"][1] = "again/layer.tar"
                member.size = len(json.dumps(content))
                new.addfile(member, io.BytesIO(json.dumps(content).encode()))
            else:
                new.addfile(member, old.extractfile(member))
        link = tarfile.TarInfo("again/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, f"../{sha256(LAYERS[0])[7:]}/layer.tar"
        new.addfile(link)
    assert _resolve(f"docker-archive:{_save(tmp_path / 'a.tar', stream.getvalue())}")[1] == [sha256(LAYERS[0])] * 2


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_compressed_archives(pack: "object", tmp_path: Path) -> None:
    content = pack(old_docker_archive({"one:1": LAYERS}))  # type: ignore[operator]
    path = _save(tmp_path / "a.tar.x", content)
    assert _resolve(f"docker-archive:{path}")[0] == ("docker.io/library/one:1",)
    _save(path, content[: len(content) // 2])
    with pytest.raises(OperationError):
        _resolve(f"docker-archive:{path}")


def test_standard_input_may_be_a_pipe(tmp_path: Path) -> None:
    script = (
        "from imagebuild.sources.open_source import open_source\n"
        "from imagebuild.oci.platforms import Platform\n"
        "print(open_source('-').resolve(Platform.of('linux', 'amd64')).names)\n"
    )
    content = old_docker_archive({"one:1": LAYERS})
    done = subprocess.run([sys.executable, "-c", script], input=content, capture_output=True, check=True)
    assert b"docker.io/library/one:1" in done.stdout


def test_every_image_of_an_archive(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.tar", old_docker_archive({"one:1": LAYERS, "two:1": some_layers(1, seed=2)}))
    bundle = open_bundle(str(path))
    names = [name for source in all_images(bundle) for name in source.resolve(AMD64).names]
    assert names == ["docker.io/library/one:1", "docker.io/library/two:1"]
    _save(path, tar_of(layout_files({"one": LAYERS, "two": some_layers(1, seed=2)})))
    assert len(list(all_images(open_bundle(str(path))))) == 2


def test_another_platform_is_refused(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"one": LAYERS}, architecture="s390x")
    with pytest.raises(ManifestError, match="linux/s390x only"):
        _resolve(f"oci:{folder}")


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("oci:nowhere", "there is no folder 'nowhere'"),
        ("oci-archive:nowhere.tar:x", "there is no file 'nowhere.tar'"),
        ("docker-archive:/dev/null", "is empty"),
    ],
)
def test_what_is_not_there(spelled: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        _resolve(spelled)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("oci-layout", b'{"imageLayoutVersion": "2.0.0"}', "its version is '2.0.0'"),
        ("oci-layout", b"[]", "expected an object"),
        ("index.json", b'{"schemaVersion": 2, "manifests": []}', "there is no image"),
        ("index.json", b"\xff", "not UTF-8"),
    ],
)
def test_damaged_layouts(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"one": LAYERS})
    _save(folder / name, content)
    with pytest.raises(OperationError, match=message):
        _resolve(f"oci:{folder}")


def test_a_blob_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"one": LAYERS})
    digest = json.loads((folder / "index.json").read_bytes())["manifests"][0]["digest"]
    path = folder / "blobs" / digest.replace(":", "/")
    _save(path, path.read_bytes() + b" ")
    with pytest.raises(ManifestError, match="the content's digest is"):
        _resolve(f"oci:{folder}")


def test_files_that_would_hang_or_lead_out_are_not_read(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "layout", {"one": LAYERS})
    (folder / "index.json").unlink()
    os.mkfifo(folder / "index.json")
    with pytest.raises(SourceError, match=r"there is no 'index.json'"):
        _resolve(f"oci:{folder}")
    saved: list[dict[str, object]] = [{"Config": "../../etc/passwd", "RepoTags": None, "Layers": []}]
    path = _save(tmp_path / "a.tar", tar_of({"manifest.json": json.dumps(saved).encode()}))
    with pytest.raises(SourceError, match=r"there is no '\.\./\.\./etc/passwd'"):
        _resolve(f"docker-archive:{path}")


def test_an_archive_that_is_cut_off(tmp_path: Path) -> None:
    content = old_docker_archive({"one:1": LAYERS})
    for length in (10, 600, len(content) // 2):
        path = _save(tmp_path / "a.tar", content[:length])
        with pytest.raises(OperationError):
            _resolve(f"docker-archive:{path}")


def test_links_that_go_round_in_circles_end(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, target in (("a", "b"), ("b", "a")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    bundle = TarBundle(_save(tmp_path / "a.tar", stream.getvalue()).open("rb"), "a.tar")
    assert bundle.size("a") is None
