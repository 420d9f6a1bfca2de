"""Commands about what is in the store: ls, inspect, history, tag, rm, gc, du, verify."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from imagebuild.cli.common import Commands, add_command, add_json, find_image, user_store
from imagebuild.cli.output import age_text, plain, print_json, print_table, short, size_text
from imagebuild.errors import ImageNameError, OperationError
from imagebuild.oci.reference import Reference
from imagebuild.store.image import Image
from imagebuild.store.store import Store


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    listing = add_command(commands, "ls", "list images", "ls --json")
    listing.add_argument("-q", "--quiet", action="store_true", help="only image IDs")
    add_json(listing)
    listing.set_defaults(run=_ls)

    inspect = add_command(commands, "inspect", "show everything about images, as JSON", "inspect debian:12-slim")
    inspect.add_argument("images", nargs="+", metavar="IMAGE")
    add_json(inspect)
    inspect.set_defaults(run=_inspect)

    history = add_command(commands, "history", "show how an image was built", "history debian:12-slim")
    history.add_argument("image", metavar="IMAGE")
    history.add_argument("--no-trunc", action="store_true", help="show commands in full")
    add_json(history)
    history.set_defaults(run=_history)

    tag = add_command(commands, "tag", "give an image one more name", "tag app:1 app:latest")
    tag.add_argument("image", metavar="IMAGE")
    tag.add_argument("name", metavar="NAME")
    tag.set_defaults(run=_tag)

    remove = add_command(commands, "rm", "take names away, and images with their last name", "rm app:1")
    remove.add_argument("images", nargs="+", metavar="IMAGE")
    remove.add_argument("-f", "--force", action="store_true", help="also if it has more names, or is in use")
    add_json(remove)
    remove.set_defaults(run=_rm)

    collect = add_command(commands, "gc", "delete what no name leads to and nobody uses", "gc")
    collect.add_argument("--keep-untagged", action="store_true", help="keep images without a name")
    add_json(collect)
    collect.set_defaults(run=_gc)

    usage = add_command(commands, "du", "show what takes how much of the disk", "du")
    add_json(usage)
    usage.set_defaults(run=_du)

    verify = add_command(commands, "verify", "check all that is stored, byte by byte", "verify --repair")
    verify.add_argument("--repair", action="store_true", help="delete what is damaged, for a pull to fetch again")
    add_json(verify)
    verify.set_defaults(run=_verify)


def _names(store: Store) -> dict[str, list[str]]:
    """The names of each image, as people write them, by manifest digest."""
    found: dict[str, list[str]] = {}
    for name, digest in store.tags().items():
        found.setdefault(digest, []).append(_familiar(name))
    return found


def _familiar(name: str) -> str:
    """A name as people write it; that of a folder or an archive stays as it is."""
    with suppress(ImageNameError):
        return Reference.parse(name).familiar()
    return name


def _ls(options: argparse.Namespace) -> int:
    store = user_store()
    names = _names(store)
    rows: list[dict[str, Any]] = []
    for record in reversed(store.records()):
        try:
            image = store.get(record.manifest)
            size = sum(layer.disk_size for layer in image.layers)
        except FileNotFoundError:
            called = (names.get(record.manifest) or [record.manifest])[0]
            print(f"imagebuild: {called} lacks layers (imagebuild pull {called} brings them back)", file=sys.stderr)
            continue
        except OperationError as error:
            print(f"imagebuild: {error}", file=sys.stderr)
            continue
        rows.append(
            {
                "names": names.get(image.digest, []),
                "id": image.id,
                "digest": image.digest,
                "platform": str(image.config.platform),
                "created": image.config.created,
                "layers": len(image.manifest.layers),
                "size": size,
            }
        )
    if options.json:
        print_json(rows)
    elif options.quiet:
        print("".join(f"{row['id']}\n" for row in rows), end="")
    else:
        lines = [
            [
                name,
                short(row["id"]),
                row["platform"],
                age_text(row["created"]),
                str(row["layers"]),
                size_text(row["size"]),
            ]
            for row in rows
            for name in row["names"] or ["<none>"]
        ]
        print_table(["NAME", "ID", "PLATFORM", "AGE", "LAYERS", "SIZE"], lines)
    return 0


def _described(store: Store, image: Image) -> dict[str, Any]:
    record = store.record(image)
    config = json.loads(image.config.raw)
    return {
        "names": _names(store).get(image.digest, []),
        "id": image.id,
        "digest": image.digest,
        "media_type": image.manifest.media_type,
        "platform": str(image.config.platform),
        "created": image.config.created,
        "author": image.config.author,
        "origin": record.origin,
        "stored": record.stored,
        "config": config.get("config") or {},
        "layers": [
            {
                "diff_id": layer.diff_id,
                "digest": layer.digest,
                "size": layer.size,
                "disk_size": layer.disk_size,
                "data_size": layer.data_size,
                "verity_root": layer.verity_root,
                "path": str(layer.path),
            }
            for layer in image.layers
        ],
    }


def _inspect(options: argparse.Namespace) -> int:
    store = user_store()
    print_json([_described(store, find_image(store, name)) for name in options.images])
    return 0


def _history(options: argparse.Namespace) -> int:
    image = find_image(user_store(), options.image)
    layers = iter(image.manifest.layers)
    rows: list[dict[str, Any]] = []
    for entry in image.config.history:
        layer = None if entry.empty_layer else next(layers, None)
        rows.append(
            {
                "created": entry.created,
                "created_by": entry.created_by,
                "comment": entry.comment,
                "digest": layer.digest if layer else "",
                "size": layer.size if layer else 0,
            }
        )
    # An image may say less than it has: layers without history are shown all the same.
    rows.extend({"created": "", "created_by": "", "comment": "", "digest": x.digest, "size": x.size} for x in layers)
    if options.json:
        print_json(rows[::-1])
        return 0
    width = None if options.no_trunc else 60
    lines = [
        [
            short(row["digest"]),
            age_text(row["created"]),
            size_text(row["size"]),
            (row["created_by"] or row["comment"])[:width],
        ]
        for row in reversed(rows)
    ]
    print_table(["LAYER", "AGE", "SIZE", "CREATED BY"], lines)
    return 0


def _tag(options: argparse.Namespace) -> int:
    store = user_store()
    name = Reference.parse(options.name)
    if name.digest:
        raise ImageNameError(
            "tag", options.name, "a name with a digest cannot be given", "leave out what follows the @"
        )
    store.tag(str(name), find_image(store, options.image))
    return 0


def _rm(options: argparse.Namespace) -> int:
    from imagebuild.store.collector import remove

    store = user_store()
    status, done = 0, []
    for name in options.images:
        try:
            done.append(remove(store, name, force=options.force))
        except OperationError as error:
            print(f"imagebuild: {error}", file=sys.stderr)
            status = 1
    if options.json:
        print_json([asdict(one) for one in done])
    else:
        for one in done:
            print("".join(f"untagged {plain(_familiar(name))}\n" for name in one.untagged), end="")
            if one.deleted:
                print(f"deleted {one.deleted} ({size_text(one.collected.freed)})")
    return status


def _gc(options: argparse.Namespace) -> int:
    from imagebuild.store.collector import collect

    done = collect(user_store(), dangling=not options.keep_untagged)
    if options.json:
        print_json(asdict(done))
    else:
        print(f"{len(done.images)} images, {len(done.layers)} layers, {size_text(done.freed)} freed")
    return 0


def _du(options: argparse.Namespace) -> int:
    from imagebuild.store.usage import usage

    store = user_store()
    found = usage(store)
    if options.json:
        print_json(asdict(found) | {"total": found.total})
        return 0
    names = _names(store)
    lines = [
        [(names.get(one.digest) or ["<none>"])[0], short(one.id), size_text(one.total), size_text(one.unique)]
        for one in found.images
    ]
    print_table(["NAME", "ID", "SIZE", "OWN"], lines)
    print(
        f"\nlayers {size_text(found.layers)}, blobs {size_text(found.blobs)}, disks {size_text(found.disks)}, "
        f"unfinished {size_text(found.unfinished)}: {size_text(found.total)}; gc frees {size_text(found.unneeded)}"
    )
    return 0


def _verify(options: argparse.Namespace) -> int:
    from imagebuild.store.verify import verify

    problems = verify(user_store(), repair=options.repair)
    if options.json:
        print_json([{"subject": one.subject, "cause": one.cause} for one in problems])
    else:
        for one in problems:
            print(f"{plain(one.subject)}: {plain(one.cause)}")
        if not problems:
            print("all is well")
    return 1 if problems and not options.repair else 0
