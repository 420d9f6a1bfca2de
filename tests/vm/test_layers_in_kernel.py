"""Layers judged by the kernel of a machine and by programs that are not ours, not one line of which reads EROFS for us.

One machine runs Debian's image, and has three more disks' worth of partitions to look at: its own layers, those of the
torture image, and the archives both were made of.  GNU tar compares each archive with the layer as the kernel shows
it; the stack of all layers is listed by tests/listing.py, which also lists what umoci unpacks on the host.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import imagebuild
from imagebuild.digest import digest_of
from imagebuild.disk.vmdk import LAYER_ALIGNMENT, DiskLayer, image_disk
from imagebuild.home import images
from imagebuild.oci.compose import write_layout
from imagebuild.store.image import Image, Layer
from tests.debian_image import CannotBuild, debian_python_layout
from tests.torture import torture_layers
from tests.vm.harness import Container, Output, container, text
from vch.machine.session import Stdio
from vch.machine.sinks import Collector

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

LISTING = Path(__file__).parents[1] / "listing.py"
JUDGE = Path(__file__).with_name("layer_judge.py")
JUDGE_SECONDS = 600.0  # hundreds of megabytes through an emulated processor
LISTING_BYTES = 32 << 20
Listing = dict[str, list[object]]
FIELDS = ("mode", "owner", "group", "size", "mtime", "device", "links", "content", "xattrs")


@dataclass
class Case:
    """An image on a disk, and the archives of its layers on another one."""

    disk: str  # serial number
    image: Image
    layout: Path
    archives: tuple[bytes, ...]

    def on_disk(self) -> list[tuple[str, Layer]]:
        """How `layer_judge.py` names what to compare with an archive, for each layer of the image.

        A layer that has a patch is right only with the patch and all that is below.
        """
        named = []
        for number, layer in enumerate(self.image.layers, 1):
            patched = self.image.layers[number : number + 1]
            if layer.digest:
                named.append((f"1-{number + 1}" if patched and not patched[0].digest else str(number), layer))
        return named


def archives_of(layout: Path) -> tuple[bytes, ...]:
    """The archives of the layers of a layout's only image, lowest first."""
    def blob(digest: str) -> bytes:
        return (layout / "blobs" / digest.replace(":", "/")).read_bytes()

    [entry] = json.loads((layout / "index.json").read_bytes())["manifests"]
    return tuple(gzip.decompress(blob(layer["digest"])) for layer in json.loads(blob(entry["digest"]))["layers"])


@pytest.fixture(scope="module")
def cases(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """The two images in the store."""
    try:
        debian = debian_python_layout()
    except CannotBuild as reason:
        pytest.skip(str(reason))
    torture = tmp_path_factory.mktemp("torture") / "layout"
    write_layout(torture, torture_layers(), {})
    store = imagebuild.Store(images())
    found = {}
    for name, disk, layout in (("debian", "image", debian), ("torture", "torture", torture)):
        image = imagebuild.pull(f"oci:{layout}:latest", store=store)
        found[name] = Case(disk, image, layout, archives_of(layout))
    return found


@pytest.fixture(scope="module")
def machine(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """The machine, all layers mounted and stacked."""
    folder = tmp_path_factory.mktemp("archives")
    (folder / "disk").mkdir()
    archives = [archive for case in cases.values() for archive in case.archives]
    files = []
    for number, archive in enumerate(archives):
        path = folder / f"{number}.tar"
        # Zeros after an archive's end are nothing to tar.
        path.write_bytes(archive + bytes(-len(archive) % LAYER_ALIGNMENT))
        files.append(DiskLayer(digest_of(archive), path))
    disks = {"tars": image_disk(files, folder / "disk"), "torture": cases["torture"].image.disk()}
    image = f"oci:{cases['debian'].layout}:latest"
    with container("-m", "512m", image, "sleep", "infinity", more_disks=disks) as made:
        for case in cases.values():
            done = judge(made, "mount", case.disk, str(len(case.image.layers)))
            assert done.code == 0, done.err
        yield made


def judge(machine: Container, *words: str) -> Output:
    """Runs layer_judge.py in the machine."""
    return python(machine, JUDGE, *words)


def python(machine: Container, program: Path, *words: str) -> Output:
    """Runs one of our programs with the image's Python."""
    out, err = Collector(LISTING_BYTES), Collector(LISTING_BYTES)
    process = machine.process("python3", "-c", program.read_text(), *words)
    session, _ = machine.machine.exec(process, Stdio(stdout=out, stderr=err))
    return Output(session.wait(JUDGE_SECONDS), text(out), text(err))


def compare(machine: Container, cases: dict[str, Case], name: str, number: int) -> list[str]:
    """What tar finds different between an archive and its layer."""
    case = cases[name]
    before = sum(len(other.archives) for other in list(cases.values())[: list(cases).index(name)])
    where, layer = case.on_disk()[number]
    assert layer.diff_id == digest_of(case.archives[number])
    done = judge(machine, "compare", case.disk, where, "tars", str(before + number + 1))
    assert done.err == ""
    assert (done.code == 0) == (not done.out), done.out
    return done.out.splitlines()


@pytest.mark.parametrize("number", range(5))
def test_tar_finds_no_difference_in_a_layer_of_debian(
    machine: Container, cases: dict[str, Case], number: int
) -> None:
    assert compare(machine, cases, "debian", number) == []


# What tar must say, because it compares each of several entries of one name, and only the last one counts.
SAYS: dict[int, list[str]] = {
    0: [],
    1: [
        "twice: Mode differs",
        "twice: Size differs",
        "turns: File type differs",
        "tar: turns/inside: Cannot stat: Not a directory",
        "tar: Exiting with failure status due to previous errors",
    ],
    2: [],
}


@pytest.mark.parametrize("number", SAYS)
def test_tar_finds_no_difference_in_a_torture_layer(machine: Container, cases: dict[str, Case], number: int) -> None:
    assert compare(machine, cases, "torture", number) == SAYS[number]


def listed(lines: str) -> Listing:
    """The output of tests/listing.py by path."""
    return {name: facts for name, *facts in map(json.loads, lines.splitlines())}


def seen_inside(machine: Container, case: Case) -> Listing:
    """The stack of all layers, as the machine shows it."""
    done = python(machine, LISTING, f"/judge/{case.disk}/1-{len(case.image.layers)}")
    assert (done.code, done.err) == (0, "")
    return listed(done.out)


def unpacked_by_umoci(case: Case, folder: Path) -> Listing:
    """The same image, unpacked on the host."""
    if os.geteuid() != 0 or not shutil.which("umoci"):
        pytest.skip("needs umoci, and root to keep owners")
    unpack = ["umoci", "unpack", "--image", f"{case.layout}:latest", f"{folder}/bundle"]
    subprocess.run(unpack, check=True, timeout=JUDGE_SECONDS)
    show = [sys.executable, str(LISTING), f"{folder}/bundle/rootfs"]
    done = subprocess.run(show, check=True, capture_output=True, text=True, timeout=JUDGE_SECONDS)
    return listed(done.stdout)


def differences(ours: Listing, theirs: Listing) -> dict[str, list[str]]:
    """By path, which of FIELDS are not the same; "there" for a file that only one side has."""
    found = {}
    for name in ours.keys() | theirs.keys():
        if name not in ours or name not in theirs:
            found[name] = ["there"]
        elif ours[name] != theirs[name]:
            pairs = zip(FIELDS, ours[name], theirs[name], strict=True)
            found[name] = [field for field, one, other in pairs if one != other]
    return found


def test_debian_is_what_umoci_unpacks(machine: Container, cases: dict[str, Case], tmp_path: Path) -> None:
    ours = seen_inside(machine, cases["debian"])
    assert len(ours) > 5000
    # A later layer takes one of this file's two names away.  overlayfs goes on showing the lower file's link count, in
    # Docker's containers too, where umoci unpacks into one tree.
    one_name_less = {"usr/bin/perl5.36.0": ["links"]}
    assert differences(ours, unpacked_by_umoci(cases["debian"], tmp_path)) == one_name_less


def test_torture_is_what_umoci_unpacks(machine: Container, cases: dict[str, Case], tmp_path: Path) -> None:
    ours = seen_inside(machine, cases["torture"])
    assert len(ours) > 3000
    # Directories that no archive describes, or that umoci deletes and makes anew, get the time of day from it; and
    # Go's tar reader loses attributes without a value.
    known = {name: ["mtime"] for name in ("implied", "implied/parents", "implied/parents/of", "lower/both")}
    assert differences(ours, unpacked_by_umoci(cases["torture"], tmp_path)) == known | {"xattrs/empty": ["xattrs"]}
