"""The command ``disk``: disks out of images, and writable ones."""

from __future__ import annotations

import argparse
import os
import re
import uuid
from pathlib import Path

from imagebuild.cli.common import Commands, add_command, find_image, user_store
from imagebuild.disk.gpt import SECTOR
from imagebuild.errors import DiskError
from imagebuild.files import explained

_SIZE = re.compile(r"(\d{1,15})([kmgt]?)(?:i?b)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    disk = add_command(commands, "disk", "make virtual disks", "disk image debian:12-slim")
    kinds = disk.add_subparsers(dest="kind", metavar="KIND", required=True)

    image = add_command(kinds, "image", "print the path of a VMDK of all layers", "disk image debian:12-slim")
    image.add_argument("image", metavar="IMAGE")
    image.set_defaults(run=_image)

    layers = add_command(kinds, "layers", "make one VMDK per layer in a folder", "disk layers debian:12-slim ./disks")
    layers.add_argument("image", metavar="IMAGE")
    layers.add_argument("folder", metavar="FOLDER", type=Path)
    layers.set_defaults(run=_layers)

    stream = add_command(kinds, "stream", "write a compressed VMDK for upload", "disk stream debian:12-slim disk.vmdk")
    stream.add_argument("source", metavar="IMAGE|VMDK", help="an image, or a VMDK of flat files")
    stream.add_argument("file", metavar="FILE", type=Path)
    stream.add_argument("--level", type=int, choices=range(1, 10), default=3, help="1 fast to 9 small; default: 3")
    stream.set_defaults(run=_stream)

    new = add_command(kinds, "new", "make an empty writable disk with an ext4 on it", "disk new 8G data.vmdk")
    new.add_argument("size", metavar="SIZE", type=size_of, help="bytes, or with k, M, G, T")
    new.add_argument("file", metavar="FILE.vmdk", type=Path)
    new.add_argument("--label", default="data")
    new.set_defaults(run=_new)

    delta = add_command(kinds, "delta", "make a child that takes the writes to a disk", "disk delta base.vmdk vm1.vmdk")
    delta.add_argument("parent", metavar="PARENT.vmdk", type=Path)
    delta.add_argument("file", metavar="FILE.vmdk", type=Path)
    delta.set_defaults(run=_delta)


def size_of(text: str) -> int:
    """Bytes from ``8G``, ``512M``, ``1048576``; powers of two, as disks of machines are made."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!a} is no size; write 512M, 8G or bytes")
    return int(found[1]) << _POWERS[found[2].lower()]


def _image(options: argparse.Namespace) -> int:
    print(find_image(user_store(), options.image).disk())
    return 0


def _layers(options: argparse.Namespace) -> int:
    from imagebuild.disk.vmdk import DiskLayer, layer_disks

    image = find_image(user_store(), options.image)
    with explained("make layer disks", str(options.folder), output=True):
        options.folder.mkdir(parents=True, exist_ok=True)
        if any(options.folder.iterdir()):
            raise DiskError("make layer disks", str(options.folder), "is not empty", "choose another folder")
        layers = [DiskLayer(layer.diff_id, layer.path) for layer in image.layers]
        for path in layer_disks(layers, options.folder):
            print(path)
    return 0


def _stream(options: argparse.Namespace) -> int:
    from imagebuild.disk.vmdk_read import read_descriptor
    from imagebuild.disk.vmdk_sparse import write_stream_optimized

    path = Path(options.source)
    disk = path if path.suffix == ".vmdk" and path.exists() else find_image(user_store(), options.source).disk()
    flat = read_descriptor(disk).flat
    if not flat:
        raise DiskError("write VMDK", str(disk), "is not made of flat files", "qemu-img convert can read it")
    print(f"{options.file}: {write_stream_optimized(flat, options.file, level=options.level):,} bytes")
    return 0


def _new(options: argparse.Namespace) -> int:
    from imagebuild.disk.ext4 import make_ext4
    from imagebuild.disk.vmdk import flat

    raw = options.file.with_name(f"{options.file.stem}-flat.vmdk")
    if options.file.suffix != ".vmdk":
        raise DiskError("make disk", str(options.file), "its name must end in .vmdk")
    if options.size % SECTOR:
        raise DiskError("make disk", str(options.file), f"{options.size} bytes are no multiple of {SECTOR}")
    made: list[Path] = []
    try:
        with explained("make disk", str(options.file), output=True):
            # Both are claimed before either is written: a disk that is there already is never touched.
            for path in (options.file, raw):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
                made.append(path)
            with raw.open("r+b") as file:
                make_ext4(file.fileno(), options.size, options.label, uuid.uuid4().bytes)
            options.file.write_text(flat(raw.name, options.size // SECTOR))
    except BaseException:
        for path in made:
            path.unlink()
        raise
    return 0


def _delta(options: argparse.Namespace) -> int:
    from imagebuild.disk.vmdk_sparse import seal, write_delta

    with explained("seal disk", str(options.parent), output=True):
        seal(options.parent)
    write_delta(options.parent, options.file)
    return 0
