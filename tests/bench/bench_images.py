"""What bringing a whole image costs, beside what cannot be left out: its download, and its conversion.

Wall times are compared here, because doing two things at once is what is measured.  They mean something on an idle
machine only; `at once` (CPU seconds by wall seconds) tells whether there was one.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from imagebuild.oci.compose import write_layout
from tests.bench.bench_layer import one_layer
from tests.bench.measure import RUN_SECONDS, Report, Row, Sample, alternate, show
from tests.debian_image import CannotBuild
from tests.registry_fixture import PROGRAM, running_registry

LAYERS = 6
STEPS = Path(__file__).with_name("image_steps.py")
TITLE = "images: pulls from a registry on loopback, beside their parts"


def bench_images(folder: Path, runs: int, report: Report) -> None:
    """Adds the table, and the ratios that were promised.  *folder* keeps the images for the next time."""
    for program in (PROGRAM, "skopeo"):
        if not shutil.which(program):
            raise CannotBuild(f"{program} is not installed")
    one, six, seven = one_layer(folder), six_layers(folder, LAYERS), six_layers(folder, LAYERS + 1)
    with tempfile.TemporaryDirectory(dir=folder) as scratch, running_registry(Path(scratch)) as address:
        names = {"one": f"{address}/one:1", "six": f"{address}/six:1"}
        for name, layout in (("one", one), ("six", six)):
            copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:latest"]
            subprocess.run([*copy, f"docker://{names[name]}"], check=True, timeout=RUN_SECONDS)
        store = Path(scratch) / "store"
        rows = alternate(
            {
                "1 layer: download alone": step(store, "download", names["one"]),
                "1 layer: conversion alone": step(store, "pull", f"oci:{one}:latest", str(store)),
                "1 layer: pull": step(store, "pull", names["one"], str(store)),
                "6 layers: download alone": step(store, "download", names["six"]),
                "6 layers: conversion alone": step(store, "pull", f"oci:{six}:latest", str(store)),
                "6 layers: pull": step(store, "pull", names["six"], str(store)),
                "6 layers: conversion, one worker": step(store, "pull", f"oci:{six}:latest", str(store), "1"),
                "a 7th layer upon 6": step(store, "second", f"oci:{six}:latest", f"oci:{seven}:latest", str(store)),
            },
            runs,
        )
        rows += alternate({"one layer of 4 GiB": step(store, "huge", str(store))}, 1)
    report.tables["images"] = rows
    show(TITLE, rows)
    wall = {row.case: row.wall for row in rows}
    for image in ("1 layer", "6 layers"):
        alone = max(wall[f"{image}: download alone"], wall[f"{image}: conversion alone"])
        report.ratios[f"{image}: pull / max(download, conversion), wall"] = round(wall[f"{image}: pull"] / alone, 3)
    both = wall["6 layers: conversion, one worker"] / wall["6 layers: conversion alone"]
    report.ratios["6 layers: one worker / default, wall"] = round(both, 3)
    report.facts["layer of 4 GiB: peak MiB"] = _peak(rows, "one layer of 4 GiB")


def _peak(rows: list[Row], case: str) -> float:
    return next(row.peak_mib for row in rows if row.case == case)


def step(store: Path, *words: str) -> Callable[[], Sample]:
    """One step of image_steps.py, with an empty store."""
    command = [sys.executable, str(STEPS), *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def run() -> Sample:
        shutil.rmtree(store, ignore_errors=True)
        os.sync()  # what the run before has written is not this one's to wait for
        done = subprocess.run(command, env=environment, check=True, capture_output=True, timeout=RUN_SECONDS)
        used = json.loads(done.stdout)
        return Sample(used["cpu"], used["wall"], used["peak_mib"], {"at once": used["cpu"] / used["wall"]})

    return run


def six_layers(folder: Path, count: int) -> Path:
    """The tree of `one_layer` as an image of 6 layers of about the same size, or with a small one upon these."""
    layout = folder / f"{count}-layers"
    if (layout / "index.json").exists():
        return layout
    [blob] = [path for path in (one_layer(folder) / "blobs/sha256").iterdir() if path.stat().st_size > 1 << 20]
    with gzip.open(blob) as stream, tarfile.open(fileobj=io.BytesIO(stream.read())) as whole:
        members = [member for member in whole.getmembers() if not member.islnk()]
        share = sum(member.size for member in members) / LAYERS
        parts: list[list[tarfile.TarInfo]] = [[] for _ in range(LAYERS)]
        done = 0
        for member in members:
            parts[min(int(done / share), LAYERS - 1)].append(member)
            done += member.size
        layers = [_archive(whole, part) for part in parts]
    small = tarfile.TarInfo("new")
    layers += [small.tobuf() + bytes(2 * tarfile.BLOCKSIZE)] * (count - LAYERS)
    shutil.rmtree(layout, ignore_errors=True)
    write_layout(layout, layers, {})
    return layout


def _archive(whole: tarfile.TarFile, members: list[tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as out:
        for member in members:
            out.addfile(member, whole.extractfile(member) if member.isreg() else None)
    return buffer.getvalue()
