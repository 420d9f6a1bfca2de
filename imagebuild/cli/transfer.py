"""Commands that bring images in and out: pull, push, load, save, import."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import IO

from imagebuild.cli.common import Commands, add_command, add_json, find_image, user_store
from imagebuild.cli.output import print_json, shown_progress
from imagebuild.config_file import load_settings
from imagebuild.errors import ImageNameError, OperationError, SourceError
from imagebuild.oci.platforms import Platform
from imagebuild.oci.reference import Reference
from imagebuild.sources.spelling import is_local
from imagebuild.store.image import Image


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    pull = add_command(commands, "pull", "bring images into the store", "pull debian:12-slim")
    pull.add_argument("images", nargs="+", metavar="IMAGE")
    pull.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="for another machine than this one")
    pull.add_argument("--policy", choices=["always", "missing", "never"], default="always", help="default: always")
    _add_keep_blobs(pull, "also keep the layers as they came, for save and push without the registry; "
                    "default: for folders and archives, and as the settings say")
    pull.add_argument("--verity", action="store_true", help="put a dm-verity hash tree behind each layer")
    _add_output(pull)
    pull.set_defaults(run=_pull)

    push = add_command(commands, "push", "send an image to a registry", "push app:1 registry.example.com/team/app:1")
    push.add_argument("image", metavar="IMAGE")
    push.add_argument("target", metavar="NAME", nargs="?", help="where to, if not what the image is called")
    _add_output(push)
    push.set_defaults(run=_push)

    load = add_command(commands, "load", "take images from an archive", "load -i app.tar")
    load.add_argument("-i", "--input", metavar="FILE", default="-", help="default: standard input")
    load.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="for another machine than this one")
    _add_keep_blobs(load, "keep the layers as they are in the archive (default)", default=True)
    _add_output(load)
    load.set_defaults(run=_load)

    save = add_command(commands, "save", "write images to an archive or folder", "save -o app.tar app:1")
    save.add_argument("images", nargs="+", metavar="IMAGE")
    save.add_argument("-o", "--output", metavar="PATH", default="-", help="default: standard output")
    forms = ["docker-archive", "oci-archive", "oci"]
    save.add_argument("--format", choices=forms, default=forms[0], help="oci is a folder; default: docker-archive")
    save.set_defaults(run=_save)

    take = add_command(commands, "import", "make an image of a root filesystem's tar", "import rootfs.tar.gz base:1")
    take.add_argument("file", metavar="FILE", help="a tar, compressed or not; - is standard input")
    take.add_argument("name", metavar="NAME", nargs="?")
    take.add_argument("-c", "--change", action="append", default=[], metavar="LINE", help="such as 'CMD [\"sh\"]'")
    take.add_argument("-m", "--message", default="", help="for the image's history")
    take.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="for another machine than this one")
    _add_keep_blobs(take, "keep the archive as the image's layer (default)", default=True)
    _add_output(take)
    take.set_defaults(run=_import)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress, and only image IDs")
    add_json(parser)


def _add_keep_blobs(parser: argparse.ArgumentParser, summary: str, default: bool | None = None) -> None:
    parser.add_argument("--keep-blobs", action=argparse.BooleanOptionalAction, default=default, help=summary)


def _platform(options: argparse.Namespace) -> Platform | None:
    return Platform.parse(options.platform) if options.platform else None


def _tell(options: argparse.Namespace, images: list[Image]) -> int:
    if options.json:
        print_json([{"reference": one.reference, "digest": one.digest, "id": one.id} for one in images])
    else:
        for image in images:
            print(image.id if options.quiet else f"{image.reference} {image.digest}")
    return 0


def _pull(options: argparse.Namespace) -> int:
    from imagebuild.transfer.pulling import PullPolicy, pull

    settings, store = load_settings(), user_store()
    found = []
    for name in options.images:
        # What has no registry behind it could not be saved or pushed later.
        usual = settings.keep_blobs or is_local(name)
        keep = usual if options.keep_blobs is None else options.keep_blobs
        with shown_progress(quiet=options.quiet or options.json) as report:
            image = pull(
                name,
                store=store,
                platform=_platform(options),
                policy=PullPolicy(options.policy),
                progress=report,
                settings=settings.registries,
                keep_blobs=keep,
                verity=options.verity,
            )
        found.append(image)
    return _tell(options, found)


def _push(options: argparse.Namespace) -> int:
    from imagebuild.transfer.push import push

    settings, store = load_settings(), user_store()
    image = find_image(store, options.image)
    reference = _target(options, image)
    with shown_progress(quiet=options.quiet or options.json) as report:
        digest = push(store, image, reference, settings=settings.registries, progress=report)
    if options.json:
        print_json({"reference": str(reference), "digest": digest})
    else:
        print(digest if options.quiet else f"{reference} {digest}")
    return 0


def _target(options: argparse.Namespace, image: Image) -> Reference:
    """Where to push to: the second name, or the first if it is one that a registry can know."""
    if options.target:
        return Reference.parse(options.target)
    if is_local(options.image) or image.reference == image.digest:
        example = f"imagebuild push {options.image} registry.example.com/name:tag"
        raise ImageNameError("push", options.image, "is not the name of a place in a registry", f"say where: {example}")
    return Reference.parse(options.image)


def _load(options: argparse.Namespace) -> int:
    from imagebuild.sources.open_archive import all_images, open_bundle
    from imagebuild.transfer.fetch import fetch

    store = user_store()
    if options.input == "-" and sys.stdin.isatty():
        raise SourceError("load", "standard input", "is a terminal", "give an archive: -i FILE, or through a pipe")
    bundle = open_bundle(options.input, store.folder("tmp"))
    found = []
    try:
        for source in all_images(bundle):
            with shown_progress(quiet=options.quiet or options.json) as report:
                found.append(
                    fetch(source, store, platform=_platform(options), progress=report, keep_blobs=options.keep_blobs)
                )
    finally:
        bundle.close()
    return _tell(options, found)


def _save(options: argparse.Namespace) -> int:
    from imagebuild.transfer.save import Format, save

    store = user_store()
    images = [find_image(store, name) for name in options.images]
    form = Format(options.format)
    settings = load_settings().registries
    if options.output != "-":
        save(store, images, Path(options.output), form, settings=settings)
        return 0
    if form is Format.OCI:
        raise OperationError("save", "standard output", "cannot be a folder", "give one: -o FOLDER")
    if sys.stdout.isatty():
        raise OperationError("save", "standard output", "is a terminal", "give a file: -o FILE")
    save(store, images, sys.stdout.buffer, form, settings=settings)
    return 0


def _import(options: argparse.Namespace) -> int:
    from imagebuild.transfer.import_image import import_image

    epoch = os.environ.get("SOURCE_DATE_EPOCH")  # https://reproducible-builds.org/specs/source-date-epoch
    with _opened(options.file) as file:
        image = import_image(
            user_store(),
            file,
            names=[str(Reference.parse(options.name))] if options.name else [],
            platform=_platform(options),
            changes=options.change,
            comment=options.message,
            keep_blobs=options.keep_blobs,
            now=float(epoch) if epoch else time.time(),
        )
    return _tell(options, [image])


def _opened(name: str) -> IO[bytes]:
    if name == "-":
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise SourceError("import", name, error.strerror or str(error)) from error
