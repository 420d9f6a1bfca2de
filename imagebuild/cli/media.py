"""The commands ``iso`` and ``ova``: media that machines start from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from imagebuild.cli.common import Commands, add_command, user_store
from imagebuild.cli.disk import size_of
from imagebuild.home import home

if TYPE_CHECKING:
    from imagebuild.media.build import Wish


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    iso = add_command(commands, "iso", "write an ISO that starts on BIOS and UEFI, as CD-ROM and as disk",
                      "iso -o app.iso --image debian:12-slim --spec spec.json")
    _add_shared(iso, "app.iso")
    iso.set_defaults(run=_iso)

    ova = add_command(commands, "ova", "write an OVA for vSphere and others: a machine that starts from such an ISO",
                      "ova -o app.ova --image debian:12-slim --memory 512M")
    _add_shared(ova, "app.ova")
    ova.add_argument("--memory", metavar="SIZE", type=size_of, default="256M", help="default: 256M")
    ova.add_argument("--cpus", metavar="NUMBER", type=int, default=1, help="default: 1")
    ova.add_argument("--drive", choices=("disk", "cd"), default="disk",
                     help="start from a compressed disk, or from the ISO in a CD-ROM drive; default: disk")
    ova.add_argument("--firmware", choices=("efi", "bios"), default="efi", help="default: efi")
    ova.set_defaults(run=_ova)


def _add_shared(parser: argparse.ArgumentParser, example: str) -> None:
    from imagebuild.media.build import DEFAULT_MEDIUM

    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help=f"such as {example}")
    parser.add_argument("--image", metavar="IMAGE", help="bring this image along, and run it without an appliance")
    parser.add_argument("--spec", metavar="FILE", type=Path, help="what to run, as JSON; see docs/iso.md")
    parser.add_argument("--kernel", choices=("pico", "debian-cloud"), help="default: pico if built")
    parser.add_argument("--append", metavar="WORD", action="append", default=[], help="add to the kernel command line")
    parser.add_argument("--max-size", metavar="SIZE", type=_medium, default=DEFAULT_MEDIUM,
                        help=f"what the medium holds: cd, dvd, dvd-dl, bd, 700M, 8G; default: {DEFAULT_MEDIUM}")


def _medium(text: str) -> int:
    from imagebuild.media.build import medium_size

    try:
        return medium_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _iso(options: argparse.Namespace) -> int:
    from imagebuild.media.build import build_iso, collect

    with _wished(options) as wish:
        plan = build_iso(collect(wish, home(), _tell), options.output)
    print(f"{options.output}: {plan.size:,} bytes, label {plan.label}")
    return 0


def _ova(options: argparse.Namespace) -> int:
    from imagebuild.media.build import build_ova, collect
    from imagebuild.media.ova import Drive, Firmware, Machine

    machine = Machine(options.memory >> 20, options.cpus, Drive(options.drive), Firmware(options.firmware))
    with _wished(options) as wish:
        build_ova(collect(wish, home(), _tell), machine, options.output)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")
    return 0


@contextmanager
def _wished(options: argparse.Namespace) -> Iterator[Wish]:
    """What the options ask for; pulls the image, and keeps it from the collector meanwhile."""
    from imagebuild.cli.output import shown_progress
    from imagebuild.config_file import load_settings
    from imagebuild.media.appliance import read_given
    from imagebuild.media.build import Wish
    from imagebuild.transfer.pulling import pull

    spec = read_given(options.spec) if options.spec else None
    with ExitStack() as stack:
        image = None
        if options.image:
            store = user_store()
            with shown_progress(quiet=False) as progress:
                image = pull(options.image, store=store, progress=progress, settings=load_settings().registries)
            stack.callback(store.pin(image).release)
        yield Wish(image, spec, options.kernel, tuple(options.append), options.max_size)


def _tell(phase: str) -> None:
    """Phases go to standard error, so that the output can be used by scripts."""
    print(phase, file=sys.stderr)
