"""What the commands share: options, the store, and finding the image that is meant."""

from __future__ import annotations

import argparse
from typing import Any, Protocol

from imagebuild.errors import StoreError
from imagebuild.home import images
from imagebuild.store.image import Image
from imagebuild.store.store import Store


class Commands(Protocol):
    """What argparse's ``add_subparsers`` returns, which has no public name."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        """Add a command."""
        ...


def add_command(commands: Commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """A command with a line of help and an example."""
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  imagebuild {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option for programs that read the output."""
    parser.add_argument("--json", action="store_true", help="write JSON")


def user_store() -> Store:
    """The user's own store."""
    return Store(images())


def find_image(store: Store, name: str) -> Image:
    """The image of this name; StoreError if there is none, or if parts of it are gone."""
    image = store.find(name)
    if image is None:
        raise StoreError("find image", name, "there is no such image", f"imagebuild pull {name}")
    missing = sum(not layer.path.exists() for layer in image.layers)
    if missing:
        cause = f"{missing} of its {len(image.layers)} layers are not there"
        raise StoreError("find image", name, cause, f"imagebuild pull {name} brings them back")
    return image
