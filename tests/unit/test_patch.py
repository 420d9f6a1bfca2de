"""Stacked layers, hard links and implied directories across them included, judged by umoci and by overlayfs."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from imagebuild.errors import LayerError
from imagebuild.layer.erofs_reader import ErofsReader
from imagebuild.layer.layer import convert
from imagebuild.layer.patch import settle
from tests import torture
from tests.debian_image import cache_folder, debian_python_layout
from tests.judges import Seen, fsck, needs_mount, needs_tool, snapshot, stacked


def stack(folder: Path, archives: Sequence[bytes]) -> list[Path]:
    """The images to stack for *archives*: one for each, and a patch after each that needs one."""
    images: list[Path] = []
    for number, archive in enumerate(archives):
        image = folder / f"{number}.erofs"
        layer = convert(io.BytesIO(archive), destination=image)
        images.append(image)
        patch = folder / f"{number}.patch"
        if layer.needs and settle(images, layer.needs, patch):
            images.append(patch)
    return images


def unpack_by_umoci(folder: Path, archives: Sequence[bytes]) -> Path:
    """The root file system that umoci makes of the same layers."""
    layout = folder / "layout"
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    layers = [blob(gzip.compress(archive, 1), "layer.v1.tar+gzip") for archive in archives]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in archives]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": layers,
    }
    entry = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "it"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return unpack_layout(layout, "it", folder)


def unpack_layout(layout: Path, tag: str, folder: Path) -> Path:
    """The root file system that umoci makes of an OCI layout."""
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:{tag}", folder / "bundle"], check=True)
    return folder / "bundle/rootfs"


def differences(ours: dict[bytes, Seen], theirs: dict[bytes, Seen]) -> dict[bytes, list[tuple[str, object, object]]]:
    """What is not the same, in few words."""
    found: dict[bytes, list[tuple[str, object, object]]] = {}
    for name in ours.keys() | theirs.keys():
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None:
            found[name] = [("there", one is not None, other is not None)]
        elif one != other:
            found[name] = [
                (field, a, b) for field, a, b in zip(Seen._fields, one, other, strict=True) if a != b
            ]
    return found


@needs_mount
@needs_tool("umoci")
@needs_tool("fsck.erofs")
def test_torture_image_is_what_umoci_unpacks(tmp_path: Path) -> None:
    archives = torture.torture_layers()
    images = stack(tmp_path, archives)
    for image in images:
        fsck(image)
    theirs = snapshot(unpack_by_umoci(tmp_path, archives))
    with stacked(images, tmp_path) as root:
        ours = snapshot(root)
        assert os.path.samefile(root / "lower/linked", root / "lower/second name")
    found = differences(ours, theirs)
    # umoci gives directories it makes or deletes in the time of day, and Go's tar reader loses empty attributes.
    for name in (b"implied", b"implied/parents", b"implied/parents/of", b"lower/both"):
        assert [field for field, *_ in found.pop(name)] == ["mtime_ns"]
    assert found.pop(b"xattrs/empty") == [("xattrs", (("user.empty", b""),), ())]
    assert found == {}


@needs_mount
@needs_tool("umoci")
def test_files_below_a_lower_symbolic_link_go_where_it_leads(tmp_path: Path) -> None:
    lower = torture.Archive().directory("usr").directory("usr/bin", mode=0o751, owner=(3, 4)).symlink("bin", "usr/bin")
    lower.add("usr/bin/old", b"old").directory("usr/bin/sub", mode=0o700)
    upper = torture.Archive().add("bin/new", b"new" * 3000, mode=0o755).hardlink("bin/also", "bin/new")
    upper.add("bin/sub/deep", b"deep").hardlink("bin/linked", "usr/bin/old")
    archives = [lower.bytes(), upper.bytes()]
    images = stack(tmp_path, archives)
    assert len(images) == 3
    theirs = snapshot(unpack_by_umoci(tmp_path, archives))
    with stacked(images, tmp_path) as root:
        ours = snapshot(root)
    found = differences(ours, theirs)
    for name in (b"usr/bin", b"usr/bin/sub", b"usr"):
        found.pop(name, None)
    assert found == {}
    assert ours[b"usr/bin"].mode & 0o7777 == 0o751
    assert ours[b"usr/bin/sub"].mode & 0o7777 == 0o700


@needs_mount
def test_opaque_root_hides_everything_below(tmp_path: Path) -> None:
    lower = torture.Archive().directory("both").add("both/old").directory("gone").add("gone/file").add("file").bytes()
    upper = torture.Archive().add("new").directory("both").add("both/new").add(".wh..wh..opq").bytes()
    images = stack(tmp_path, [lower, upper])
    with stacked(images, tmp_path) as root:
        assert sorted(snapshot(root)) == [b"both", b"both/new", b"new"]


def test_link_to_nothing_is_refused(tmp_path: Path) -> None:
    archives = [torture.Archive().add("a").bytes(), torture.Archive().hardlink("b", "c").bytes()]
    with pytest.raises(LayerError, match="no lower layer has"):
        stack(tmp_path, archives)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.erofs", "1.erofs"]


def test_link_to_a_name_the_layer_hides_gets_the_content_only(tmp_path: Path) -> None:
    lower = torture.Archive().add("old", b"content", owner=(1, 2), mode=0o640).bytes()
    upper = torture.Archive().hardlink("new", "old").whiteout("", "old").bytes()
    images = stack(tmp_path, [lower, upper])
    with ErofsReader(images[-1]) as patch:
        names = patch.children(patch.root())
        assert sorted(names) == [b"new"]
        inode = patch.inode(names[b"new"])
        assert b"".join(patch.data(inode)) == b"content"
        assert (inode.entry.uid, inode.entry.gid, inode.entry.mode) == (1, 2, 0o640)


@needs_tool("veritysetup")
def test_a_patch_has_a_hash_tree_if_it_is_asked_for(tmp_path: Path) -> None:
    images = []
    for number, archive in enumerate((torture.Archive().add("old", b"content").bytes(),
                                      torture.Archive().hardlink("new", "old").whiteout("", "old").bytes())):
        images.append(tmp_path / f"{number}.erofs")
        layer = convert(io.BytesIO(archive), destination=images[-1], verity=True)
    patch = tmp_path / "patch"
    made = settle(images, layer.needs, patch, verity=True)
    assert made is not None
    command = ["veritysetup", "verify", str(patch), str(patch), made.verity_root, f"--hash-offset={made.image_size}"]
    subprocess.run(command, check=True)


def test_parents_that_no_layer_has_need_no_patch(tmp_path: Path) -> None:
    archives = [torture.Archive().add("a").bytes(), torture.Archive().add("b/c").bytes()]
    assert len(stack(tmp_path, archives)) == 2


@needs_mount
@needs_tool("umoci")
def test_debian_with_five_layers_is_what_umoci_unpacks(tmp_path: Path) -> None:
    if not list(cache_folder().glob("debian-python-*/index.json")):
        pytest.skip("the Debian image is not in the cache: run the VM tests once")
    layout = debian_python_layout()
    archives = [gzip.decompress(blob.read_bytes()) for blob in layer_blobs(layout)]
    images = stack(tmp_path, archives)
    theirs = snapshot(unpack_layout(layout, "latest", tmp_path))
    with stacked(images, tmp_path) as root:
        found = differences(snapshot(root), theirs)
    # overlayfs shows the link count of the lower file, although a layer above took one of its names away.
    assert {field for changes in found.values() for field, *_ in changes} <= {"nlink"}
    assert len(found) <= 1


def layer_blobs(layout: Path) -> list[Path]:
    """The files of the layers of a layout's only image, lowest first."""
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((layout / "blobs" / index["manifests"][0]["digest"].replace(":", "/")).read_text())
    return [layout / "blobs" / layer["digest"].replace(":", "/") for layer in manifest["layers"]]
