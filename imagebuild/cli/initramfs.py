"""The command ``initramfs``: shows and writes the boot image."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagebuild.cli.common import Commands, add_command, add_json
from imagebuild.home import home

if TYPE_CHECKING:
    from imagebuild.boot.inventory import Inventory

MANIFEST_SUFFIX, SBOM_SUFFIX = ".manifest.json", ".cdx.json"


def add_commands(commands: Commands) -> None:
    """Add the command of this module."""
    parser = add_command(commands, "initramfs",
                         "write the boot image (Python, the agent, drivers), or say why it has what it has",
                         "initramfs --explain")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path,
                        help=f"write it, beside it FILE{MANIFEST_SUFFIX} and the SBOM FILE{SBOM_SUFFIX}")
    parser.add_argument("--no-sbom", action="store_true", help="write no SBOM (it needs cyclonedx-python-lib and dpkg)")
    parser.add_argument("--explain", action="store_true", help="list its files with sizes and reasons")
    parser.add_argument("--kernel", choices=("pico", "debian-cloud"), help="default: pico if built")
    add_json(parser)
    parser.set_defaults(run=_initramfs)


def _initramfs(options: argparse.Namespace) -> int:
    from imagebuild.boot.inventory import take_inventory
    from imagebuild.boot.kernel import choose

    inventory = take_inventory(choose(home(), options.kernel), home())
    if options.output:
        _write(inventory, options.output, sbom=not options.no_sbom)
    if options.json:
        from imagebuild.cli.output import print_json

        print_json(document(inventory))
    elif options.explain:
        _explain(inventory)
    else:
        place = options.output or inventory.image.path
        print(f"{place}: {inventory.image.size:,} bytes, {inventory.image.unpacked:,} unpacked")
    return 0


def document(inventory: Inventory) -> dict[str, Any]:
    """The inventory for programs; sizes in bytes."""
    return {
        "kernel": inventory.kernel.name,
        "release": inventory.kernel.release,
        "compressed": inventory.image.size,
        "unpacked": inventory.image.unpacked,
        "groups": inventory.totals(),
        "files": [{"name": item.name, "size": item.size, "sha256": item.sha256, "group": item.group, "why": item.why}
                  for item in inventory.items],
        "modules": [{"name": module.name, "size": module.size, "file": module.file, "why": module.why}
                    for module in inventory.modules],
    }


def manifest(inventory: Inventory) -> bytes:
    """Name, size and digest of every file, and of the image itself."""
    import hashlib

    rows = [{"name": item.name, "size": item.size, "sha256": item.sha256} for item in inventory.items]
    image = inventory.image.path.read_bytes()
    whole = {"size": len(image), "sha256": hashlib.sha256(image).hexdigest(), "kernel": inventory.kernel.release}
    return json.dumps({"image": whole, "files": rows}, indent=2).encode() + b"\n"


def _write(inventory: Inventory, output: Path, *, sbom: bool) -> None:
    """The image and what describes it; nothing is written before everything could be made."""
    from imagebuild.errors import InitramfsError

    made = {output: inventory.image.path.read_bytes(), _beside(output, MANIFEST_SUFFIX): manifest(inventory)}
    if sbom:
        from imagebuild.boot.sbom import write_sbom

        made[_beside(output, SBOM_SUFFIX)] = write_sbom(inventory, importlib.metadata.version("vch"))
    for path, content in made.items():
        try:
            path.write_bytes(content)
        except OSError as error:
            raise InitramfsError("write boot image", str(path), error.strerror or str(error),
                                 "choose another place with -o") from error


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(output.name + suffix)


def _explain(inventory: Inventory) -> None:
    from imagebuild.cli.output import print_table

    ordered = sorted(inventory.items, key=lambda item: (item.group, -item.size, item.name))
    print_table(("NAME", "SIZE", "GROUP", "WHY"),
                [(item.name, f"{item.size:,}", item.group, item.why) for item in ordered])
    print()
    print_table(("MODULE", "SIZE", "FILE", "WHY"),
                [(module.name, f"{module.size:,}", module.file, module.why)
                 for module in sorted(inventory.modules, key=lambda module: (module.file, -module.size, module.name))])
    print()
    print_table(("GROUP", "FILES", "SIZE"),
                [(group, str(sum(item.group == group for item in inventory.items)), f"{size:,}")
                 for group, size in inventory.totals().items()])
    print(f"\n{len(inventory.items)} files, {inventory.image.unpacked:,} bytes as an archive, "
          f"{inventory.image.size:,} compressed, for {inventory.kernel.name} {inventory.kernel.release}")
