"""What converting one layer costs: ours, the least anything could cost, and other tools, in turns, in CPU seconds.

The layer is Debian with Python, gzip, about 135 MB unpacked.  The floor does what cannot be left out: read the blob,
hash it, decompress it with isal, hash that, write it.  Peers check no digests.

    python -m tests.bench.bench_layer FOLDER [--runs 5] [--json FILE]

Peak memory is shown for our own processes only.  FOLDER keeps the layer for the next time; scratch files in it are
removed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from imagebuild.oci.compose import write_layout
from tests.bench.measure import Row, Sample, alternate, ratio, show
from tests.debian_image import debian_python_layout

LAYERS_TAKEN = 2  # of the test image: the base system and Python; the others change little
LEFT_OUT = ("usr/share/locale/", "usr/share/doc/", "usr/share/man/", "var/lib/apt/lists/")  # as slim images do
EXT4_MIB = 400
OURS, FLOOR, SLOWEST = "imagebuild", "floor", "umoci + mke2fs + qemu-img"


def one_layer(folder: Path) -> Path:
    """The OCI layout (tag "latest") of an image with one layer, made when it is not in *folder*."""
    layout = folder / "one-layer"
    if (layout / "index.json").exists():
        return layout
    source = debian_python_layout()
    merged = folder / "merged.tar"
    seen: set[str] = set()
    with tarfile.open(merged, "w", format=tarfile.GNU_FORMAT) as out:
        for blob in _layer_blobs(source)[:LAYERS_TAKEN]:
            with gzip.open(blob) as stream, tarfile.open(fileobj=stream, mode="r|") as layer:
                for member in layer:
                    if member.name.startswith(LEFT_OUT) or member.name in seen:
                        continue
                    seen.add(member.name)
                    out.addfile(member, layer.extractfile(member) if member.isreg() else None)
    shutil.rmtree(layout, ignore_errors=True)
    write_layout(layout, [merged.read_bytes()], {"Cmd": ["python3"]})
    merged.unlink()
    return layout


def _layer_blobs(layout: Path) -> list[Path]:
    """The files of the layers of a layout's only image, lowest first."""
    index = json.loads((layout / "index.json").read_text())

    def blob(digest: str) -> Path:
        return layout / "blobs" / digest.replace(":", "/")

    manifest = json.loads(blob(index["manifests"][0]["digest"]).read_text())
    return [blob(layer["digest"]) for layer in manifest["layers"]]


def bench_layer(folder: Path, runs: int = 5) -> list[Row]:
    """Measure all cases that this machine has the tools for, *runs* times each in turns, and print the table."""
    layout = one_layer(folder)
    [blob] = _layer_blobs(layout)
    scratch = folder / "scratch"
    rows = alternate({name: _case(command, scratch) for name, command in _commands(layout, blob).items()}, runs)
    show(f"one layer, {blob.stat().st_size / 1e6:.0f} MB gzip, to a disk", rows)
    for row in rows[1:]:
        print(f"{row.case}: {ratio(rows, row.case, FLOOR):.2f} x the floor, "
              f"{ratio(rows, row.case, OURS):.2f} x ours")  # fmt: skip
    return rows


def _commands(layout: Path, blob: Path) -> dict[str, list[str]]:
    """The cases by name; each command runs in an empty folder of its own."""
    this = [sys.executable, str(Path(__file__).with_name("layer_steps.py"))]
    commands = {
        FLOOR: [*this, "floor", str(blob), "out"],
        OURS: [*this, "ours", str(blob), "out"],
        "imagebuild, with dm-verity": [*this, "verity", str(blob), "out"],
    }
    unpack = f"umoci unpack --image {layout}:latest bundle"
    if shutil.which("sqfstar"):
        commands["sqfstar, uncompressed"] = _shell(f"gunzip -c {blob} | sqfstar -quiet -noI -noD -noF -noX out.sqfs")
    if shutil.which("mkfs.erofs"):
        help_text = subprocess.run(["mkfs.erofs", "--help"], capture_output=True, text=True, check=False)
        if "--tar" in help_text.stdout + help_text.stderr:
            commands["mkfs.erofs --tar"] = _shell(f"gunzip -c {blob} | mkfs.erofs --tar=f out.erofs -")
        if shutil.which("umoci"):
            commands["umoci + mkfs.erofs"] = _shell(f"{unpack} && mkfs.erofs --quiet out.erofs bundle/rootfs")
    if shutil.which("umoci") and shutil.which("qemu-img"):
        commands[SLOWEST] = _shell(
            f"{unpack} && mke2fs -q -t ext4 -d bundle/rootfs out.ext4 {EXT4_MIB}M"
            " && qemu-img convert -O vmdk out.ext4 out.vmdk"
        )
    return commands


def _shell(script: str) -> list[str]:
    return ["bash", "-euo", "pipefail", "-c", script]


def _case(command: list[str], scratch: Path) -> Callable[[], Sample]:
    """Run *command* in an empty folder, measure it and what it started, and remove what it made."""

    def run() -> Sample:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        started = time.monotonic()
        with open(scratch / "errors", "wb") as errors, subprocess.Popen(
            command, cwd=scratch, env=environment, stdout=subprocess.PIPE, stderr=errors
        ) as process:
            assert process.stdout is not None
            said = process.stdout.read().split()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - started
        complaint = (scratch / "errors").read_text(errors="replace")[-2000:]
        shutil.rmtree(scratch)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, stderr=complaint)
        peak = float(said[-1]) if command[0] == sys.executable else 0
        return Sample(used.ru_utime + used.ru_stime, wall, peak)

    return run


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the layer is kept")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = bench_layer(options.folder.resolve(), options.runs)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
