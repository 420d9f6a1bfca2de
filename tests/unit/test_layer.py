"""The pipeline: what is verified, what is refused, and that a failure leaves nothing behind."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from imagebuild.errors import LayerError, StoreError
from imagebuild.layer.decompress import Compression
from imagebuild.layer.layer import ConvertedLayer, convert
from imagebuild.layer.limits import Limits
from tests import torture
from tests.judges import fsck, mounted, needs_mount, needs_tool

MEBIBYTE = 1 << 20


def small() -> bytes:
    """A layer of a few files."""
    return torture.Archive().directory("d").add("d/a", b"a" * 10_000).add("d/b", b"b" * 100).bytes()


def digest(data: bytes) -> str:
    """Its sha256 digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def compressed(archive: bytes, how: str) -> bytes:
    """*archive* in one of the forms that layers come in."""
    half = len(archive) // 2
    return {
        "none": lambda: archive,
        "gzip": lambda: gzip.compress(archive),
        "gzip members": lambda: gzip.compress(archive[:half]) + gzip.compress(b"") + gzip.compress(archive[half:]),
        "gzip padded": lambda: gzip.compress(archive) + bytes(1000),
        "zstd": lambda: zstandard.compress(archive),
        "zstd frames": lambda: zstandard.compress(archive[:half]) + zstandard.compress(archive[half:]),
        "zstd skippable": lambda: b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstandard.compress(archive),
    }[how]()


FORMS = ("none", "gzip", "gzip members", "gzip padded", "zstd", "zstd frames", "zstd skippable")


@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize("chunk", [1, 100_000])
def test_every_compression_gives_the_same_image(tmp_path: Path, how: str, chunk: int) -> None:
    archive = small()
    blob = compressed(archive, how)
    seen: list[int] = []
    layer = convert(
        (blob[at : at + chunk] for at in range(0, len(blob), chunk)),
        destination=tmp_path / "image",
        digest=digest(blob),
        size=len(blob),
        diff_id=digest(archive),
        on_progress=seen.append,
    )
    assert (layer.diff_id, layer.digest) == (digest(archive), digest(blob))
    assert (layer.compressed_size, layer.tar_size) == (len(blob), len(archive))
    assert layer.image_size == (tmp_path / "image").stat().st_size
    assert seen[-1] == len(blob)
    assert sorted(seen) == seen
    convert(io.BytesIO(archive), destination=tmp_path / "plain")
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "image").read_bytes()


def test_other_digest_algorithms(tmp_path: Path) -> None:
    archive = small()
    wanted = f"sha512:{hashlib.sha512(archive).hexdigest()}"
    assert convert(io.BytesIO(archive), destination=tmp_path / "i", diff_id=wanted, digest=wanted).diff_id == wanted


@needs_tool("fsck.erofs")
@pytest.mark.parametrize("archive", [b"", bytes(1024), bytes(10_240)])
def test_empty_layers(tmp_path: Path, archive: bytes) -> None:
    layer = convert(io.BytesIO(gzip.compress(archive)), destination=tmp_path / "image")
    assert (layer.entries, layer.image_size) == (0, 4096)
    fsck(tmp_path / "image")


def refused(tmp_path: Path, blob: bytes, **options: object) -> LayerError:
    """The error that converting *blob* ends in, once it is sure that nothing was left behind."""
    destination = tmp_path / "image"
    destination.write_bytes(b"what was there before")
    with pytest.raises(LayerError) as caught:
        convert(io.BytesIO(blob), destination=destination, **options)  # type: ignore[arg-type]
    assert destination.read_bytes() == b"what was there before"
    assert os.listdir(tmp_path) == ["image"]
    return caught.value


@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_layers(tmp_path: Path, how: str, keep: float) -> None:
    archive = torture.Archive().add("f", os.urandom(100_000)).bytes()
    blob = compressed(archive, how)
    cut = blob[: int((len(blob) - 1000 * (how == "gzip padded")) * keep)]
    refused(tmp_path, cut, diff_id=digest(archive))
    assert "promise" in refused(tmp_path, cut, size=len(blob), digest=digest(blob)).cause


def test_damaged_layers_are_called_so(tmp_path: Path) -> None:
    blob = bytearray(gzip.compress(small()))
    blob[len(blob) // 2] ^= 0xFF
    refused(tmp_path, bytes(blob))
    error = refused(tmp_path, bytes(blob), digest=digest(gzip.compress(small())), size=len(blob))
    assert error.step == "verify"
    assert "digest" in error.cause


def test_gzip_checksum_is_checked(tmp_path: Path) -> None:
    blob = bytearray(gzip.compress(small()))
    blob[-8] ^= 1
    assert "damaged" in refused(tmp_path, bytes(blob)).cause


def test_wrong_digests_and_sizes(tmp_path: Path) -> None:
    blob = gzip.compress(small())
    other = digest(b"other")
    assert "digest" in refused(tmp_path, blob, digest=other).cause
    assert other in refused(tmp_path, blob, diff_id=other).cause
    assert "longer" in refused(tmp_path, blob, size=len(blob) - 1).cause
    assert "promises" in refused(tmp_path, blob, size=len(blob) + 1).cause
    assert refused(tmp_path, blob, digest="md5:123").step == "verify"
    assert refused(tmp_path, blob, digest="sha256:123").step == "verify"


def test_other_formats_are_named(tmp_path: Path) -> None:
    assert "bzip2" in refused(tmp_path, bz2.compress(small())).cause
    refused(tmp_path, small(), media=Compression.GZIP)
    refused(tmp_path, small(), media=Compression.ZSTD)
    refused(tmp_path, gzip.compress(small()) + b"rubbish")


def test_bombs_do_not_go_off(tmp_path: Path) -> None:
    bomb = gzip.compress(torture.Archive().add("zeros", bytes(20 * MEBIBYTE)).bytes())
    tight = replace(Limits(), expanded_bytes=MEBIBYTE)
    assert "larger than" in refused(tmp_path, bomb, limits=tight).cause
    ratio = replace(Limits(), ratio=100, ratio_floor=MEBIBYTE)
    assert "unpack to more" in refused(tmp_path, bomb, limits=ratio).cause
    frame = zstandard.compress(bytes(64 * MEBIBYTE))
    assert "unpack to more" in refused(tmp_path, frame * 100, limits=ratio).cause


def test_mazes_and_tiny_members_cost_little(tmp_path: Path) -> None:
    maze = torture.Archive().directory("d").symlink("d/up", "../" + "d/../" * 700 + "d")
    for at in range(100):
        maze.add(f"d/up/up/up/up/{'.' + '/.' * (at % 50)}/{at}/x")
    assert "maze" in refused(tmp_path, maze.bytes(), limits=replace(Limits(), path_steps=20_000)).cause
    blob = gzip.compress(b"") * 100_000 + gzip.compress(small())
    started = time.process_time()
    convert(io.BytesIO(blob), destination=tmp_path / "image")
    assert time.process_time() - started < 5


def test_limits_on_entries_and_names(tmp_path: Path) -> None:
    tar = torture.Archive()
    for at in range(20):
        tar.add(f"file{at}")
    assert "more than 10" in refused(tmp_path, tar.bytes(), limits=replace(Limits(), entries=10)).cause
    deep = torture.Archive().add("a/" * 30 + "f").bytes()
    assert "more than 10" in refused(tmp_path, deep, limits=replace(Limits(), entries=10)).cause
    names = torture.Archive().add("x" * 200).add("y" * 200).bytes()
    assert "names" in refused(tmp_path, names, limits=replace(Limits(), metadata_bytes=300)).cause


@pytest.mark.parametrize(
    "archive",
    [
        torture.Archive().add("../outside"),
        torture.Archive().add("a/../../outside"),
        torture.Archive().hardlink("a", "../outside"),
        torture.Archive().add("f").add("f/under a file"),
        torture.Archive().add("n" * 256),
        torture.Archive().add("a/" + "n" * 256 + "/b"),
        torture.Archive().symlink("loop", "loop").add("loop/file"),
        torture.Archive().directory("d").hardlink("link", "d"),
        torture.Archive().add("."),
        torture.Archive().add(".wh."),
        torture.Archive().add("d/.wh..").add("d/.wh..."),
        torture.Archive().add(".wh.d/file"),
        torture.Archive().add("device", type=tarfile.CHRTYPE, device=(5000, 1)),
        torture.Archive().add("x", xattrs={"user.large": bytes(65536)}),
        torture.Archive().symlink("long", "x" * 4096),
    ],
)
def test_hostile_names_are_refused(tmp_path: Path, archive: torture.Archive) -> None:
    error = refused(tmp_path, archive.bytes())
    assert error.subject
    assert error.remedy


@needs_mount
def test_names_stay_inside_the_layer(tmp_path: Path) -> None:
    tar = torture.Archive().directory("real").symlink("absolute", "/real").symlink("climbs", "../../../../real")
    tar.symlink("chain", "absolute").add("/rooted").add("./dotted//slashed").add("real/../beside")
    tar.add("absolute/one").add("climbs/two").add("chain/three").symlink("dangling", "made").add("dangling/four")
    tar.add("real/kept", xattrs={"trusted.overlay.redirect": b"/", "com.apple.thing": b"x", "user.ok": b"y"})
    convert(io.BytesIO(tar.bytes()), destination=tmp_path / "image")
    with mounted(tmp_path / "image", tmp_path / "root") as root:
        assert sorted(os.listdir(root / "real")) == ["kept", "one", "three", "two"]
        assert os.listdir(root / "made") == ["four"]
        assert os.listdir(root / "dotted") == ["slashed"]
        assert (root / "rooted").exists()
        assert (root / "beside").exists()
        assert os.listxattr(root / "real/kept") == ["user.ok"]


def test_the_sources_own_errors_pass_through(tmp_path: Path) -> None:
    def source() -> Iterator[bytes]:
        yield small()[:600]
        raise ConnectionResetError("the registry went away")

    with pytest.raises(ConnectionResetError):
        convert(source(), destination=tmp_path / "image")
    assert os.listdir(tmp_path) == []


def test_full_disk_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        convert(io.BytesIO(small()), destination=tmp_path / "none/image")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StoreError, match="too large"):
            convert(io.BytesIO(small()), destination=tmp_path / "image")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


@needs_mount
def test_a_file_system_that_is_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        archive = torture.Archive().add("f", os.urandom(200_000)).bytes()
        with pytest.raises(StoreError) as caught:
            convert(io.BytesIO(archive), destination=disk / "image")
        assert "free some space" in caught.value.remedy
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_kill_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib\n"
        "from imagebuild.layer.layer import convert\n"
        "def source():\n"
        "    yield sys.stdin.buffer.read()\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
        "convert(source(), destination=pathlib.Path(sys.argv[1]))\n"
    )
    archive = torture.Archive().add("f", bytes(MEBIBYTE)).bytes()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "image"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(archive[:-1])
        process.stdin.close()
        assert process.stdout.readline() == b"written\n"
        process.kill()
    assert os.listdir(tmp_path) == []


MEMORY_SCRIPT = """
import pathlib, sys, tarfile
from imagebuild.layer.layer import convert

def member(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf()

def source():
    small = b"x" * 3072
    for number in range(30):
        for file in range(1000):
            yield member(f"{number}/{file}", 3000) + small
        yield member(f"{number}/large", 20 << 20)
        for _ in range(20):
            yield bytes(1 << 20)

layer = convert(source(), destination=pathlib.Path(sys.argv[1]))
peak = pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
print(layer.entries, layer.tar_size, peak)
"""


def test_memory_does_not_grow_with_the_layer(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(tmp_path / "image")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    entries, size, peak = map(int, done.stdout.split())
    assert entries == 30 * 1002
    assert size > 700 * MEBIBYTE
    assert peak < 100 * 1024
    (tmp_path / "image").unlink()


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    archives = [torture.Archive().add(f"f{at}", torture.pattern(100_000 + at, at)).bytes() for at in range(8)]
    results: dict[int, ConvertedLayer] = {}

    def work(at: int) -> None:
        results[at] = convert(io.BytesIO(gzip.compress(archives[at])), destination=tmp_path / str(at))

    threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[at].diff_id for at in range(8)] == [digest(archive) for archive in archives]


@pytest.mark.parametrize("archive", [small(), b"", torture.Archive().add("large", bytes(3 * MEBIBYTE)).bytes()])
@needs_tool("veritysetup")
def test_verity_tree_is_what_veritysetup_expects(tmp_path: Path, archive: bytes) -> None:
    image = tmp_path / "image"
    layer = convert(io.BytesIO(archive), destination=image, verity=True)
    subprocess.run(
        ["veritysetup", "verify", image, image, str(layer.verity_root), f"--hash-offset={layer.image_size}"], check=True
    )
    with open(image, "r+b") as file:
        file.seek(100)
        file.write(b"!")
    done = subprocess.run(
        ["veritysetup", "verify", image, image, str(layer.verity_root), f"--hash-offset={layer.image_size}"],
        check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode != 0


def test_image_and_root_hash_of_a_known_layer_never_change_by_accident(tmp_path: Path) -> None:
    """If this fails on purpose, raise CONVERTER_VERSION (store/kinds.py): stores hold images of the old kind."""
    archive = torture.base_layer()
    layer = convert(io.BytesIO(archive), destination=tmp_path / "image", verity=True)
    known = json.loads((Path(__file__).parent / "layer_known.json").read_text())
    assert digest((tmp_path / "image").read_bytes()) == known["image"]
    assert layer.verity_root == known["root"]
