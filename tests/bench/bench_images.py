"""What bringing a whole image costs, beside what cannot be left out: its download, and its conversion.

Wall times are compared here, because doing two things at once is what is measured: the best of all runs, since what
else a machine does can only add to them.  `at once` is CPU seconds by wall seconds.
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
from collections.abc import Callable, Sequence
from pathlib import Path

from imagebuild.oci.compose import write_layout
from tests.bench.bench_layer import one_layer
from tests.bench.measure import RUN_SECONDS, Report, Sample, alternate, show
from tests.debian_image import CannotBuild
from tests.registry_fixture import PROGRAM, running_registry

LAYERS = 6
HUGE = "one layer of 4 GiB"
STEPS = Path(__file__).with_name("image_steps.py")
TITLE = "images: pulls from a registry on loopback, beside their parts"


def bench_images(folder: Path, runs: int, report: Report) -> None:
    """Adds the table, and the ratios that were promised.  *folder* keeps the images for the next time."""
    for program in (PROGRAM, "skopeo"):
        if not shutil.which(program):
            raise CannotBuild(f"{program} is not installed")
    one, six, seven = one_layer(folder), six_layers(folder, LAYERS), six_layers(folder, LAYERS + 1)
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch, running_registry(Path(scratch)) as address:
        names = {"one": f"{address}/one:1", "six": f"{address}/six:1"}
        for name, layout in (("one", one), ("six", six)):
            copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:latest"]
            subprocess.run([*copy, f"docker://{names[name]}"], check=True, timeout=RUN_SECONDS)
        store = Path(scratch) / "store"
        commands = {
            "1 layer: download alone": ("download", names["one"]),
            "1 layer: conversion alone": ("pull", f"oci:{one}:latest", str(store)),
            "1 layer: pull": ("pull", names["one"], str(store)),
            "6 layers: download alone": ("download", names["six"]),
            "6 layers: conversion alone": ("pull", f"oci:{six}:latest", str(store)),
            "6 layers: pull": ("pull", names["six"], str(store)),
            "6 layers: conversion, one worker": ("pull", f"oci:{six}:latest", str(store), "1"),
            "a 7th layer upon 6": ("second", f"oci:{six}:latest", f"oci:{seven}:latest", str(store)),
        }
        rows = alternate({case: step(case, words, store, best) for case, words in commands.items()}, runs)
        rows += alternate({HUGE: step(HUGE, ("huge", str(store)), store, best)}, 1)
    report.tables["images"] = rows
    show(TITLE, rows)
    for image in ("1 layer", "6 layers"):
        alone = max(best[f"{image}: download alone"], best[f"{image}: conversion alone"])
        title = f"{image}: pull / max(download, conversion), best wall"
        report.ratios[title] = round(best[f"{image}: pull"] / alone, 3)
    both = best["6 layers: conversion, one worker"] / best["6 layers: conversion alone"]
    report.ratios["6 layers: one worker / default, best wall"] = round(both, 3)
    report.facts["layer of 4 GiB: peak MiB"] = next(row.peak_mib for row in rows if row.case == HUGE)


def step(case: str, words: Sequence[str], store: Path, best: dict[str, float]) -> Callable[[], Sample]:
    """One step of image_steps.py, with an empty store; keeps the shortest time by the clock in *best*."""
    command = [sys.executable, str(STEPS), *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def run() -> Sample:
        shutil.rmtree(store, ignore_errors=True)
        os.sync()  # what the run before has written is not this one's to wait for
        done = subprocess.run(command, env=environment, check=True, capture_output=True, timeout=RUN_SECONDS)
        used = json.loads(done.stdout)
        best[case] = min(best.get(case, used["wall"]), used["wall"])
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
