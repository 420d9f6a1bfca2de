"""From what a user asks for to an ISO or OVA: kernel, initramfs, boot loader, and perhaps a container."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imagebuild.boot.boot_image import build_initramfs
from imagebuild.boot.kernel import choose
from imagebuild.errors import MediaError
from imagebuild.media.appliance import appliance_files
from imagebuild.media.bootloader import find_bootloader
from imagebuild.media.iso import ARGUMENTS, SPEC_PATH, IsoPlan, Recipe, plan_iso, write_iso
from imagebuild.media.ova import DISK_ALIGNMENT, Drive, Machine, write_ova
from imagebuild.oci.compose import EPOCH
from imagebuild.store.image import Image

# What media hold, in bytes, by the names people use: ECMA-130 (80 minutes), ECMA-267, ECMA-337, BD-R single layer.
MEDIA = {"cd": 737_280_000, "dvd": 4_700_372_992, "dvd-dl": 8_543_666_176, "bd": 25_025_314_816}
DEFAULT_MEDIUM = "dvd"
_SIZE = re.compile(r"(\d{1,9})([MG])B?", re.IGNORECASE)
_POWERS = {"M": 20, "G": 30}
_LATEST = 4_102_444_800  # the year 2100: FAT and ISO 9660 stop counting soon after


@dataclass(frozen=True)
class Wish:
    """What is asked for.  `image` and `spec` may be left out; without both the VM waits for its appliance."""

    image: Image | None = None
    spec: Mapping[str, Any] | None = None
    kernel: str | None = None
    append: tuple[str, ...] = ()
    max_bytes: int = MEDIA[DEFAULT_MEDIUM]


def collect(wish: Wish, home: Path, progress: Callable[[str], None]) -> Recipe:
    """Everything that goes into the ISO.  `home` is the folder of caches.  Raises OperationError."""
    kernel = choose(home, wish.kernel, progress)
    initramfs = build_initramfs(kernel, home)
    try:
        image, archive = kernel.image.read_bytes(), initramfs.path.read_bytes()
    except OSError as error:
        raise MediaError("read kernel", str(error.filename), error.strerror or str(error), "try again") from error
    return Recipe(
        kernel=image,
        initramfs=archive,
        bootloader=find_bootloader(home),
        epoch=source_date_epoch(os.environ),
        max_bytes=wish.max_bytes,
        arguments=(*ARGUMENTS, *wish.append),
        files=appliance_files(wish.image, wish.spec or {}),
    )


def build_iso(recipe: Recipe, path: Path) -> IsoPlan:
    """Write the ISO, and say what it became.  Raises OperationError."""
    plan = plan_iso(recipe)
    write_iso(plan, path)
    return plan


def build_ova(recipe: Recipe, machine: Machine, path: Path) -> None:
    """Write the OVA of a machine that starts from the ISO.  Raises OperationError."""
    if machine.drive is Drive.DISK:
        recipe = replace(recipe, granule=DISK_ALIGNMENT)
    content = recipe.files.get(SPEC_PATH)
    text = content.data if content is not None and isinstance(content.data, bytes) else b""
    spec = json.dumps(json.loads(text), separators=(",", ":")) if text else ""  # one line: guestinfo takes no more
    write_ova(plan_iso(recipe), machine, spec, recipe.epoch, path)


def source_date_epoch(environment: Mapping[str, str]) -> int:
    """The time stamp of everything: SOURCE_DATE_EPOCH (reproducible-builds.org) or a fixed moment.

    Raises MediaError for what is no time between 1970 and 2100.
    """
    given = environment.get("SOURCE_DATE_EPOCH", "")
    if not given:
        return EPOCH
    if not given.isascii() or not given.isdigit() or int(given) > _LATEST:
        raise MediaError("read environment", "SOURCE_DATE_EPOCH", f"{given!r} is no number of seconds since 1970",
                         "unset it, or use `date +%s`")
    return int(given)


def medium_size(text: str) -> int:
    """Bytes of "cd", "dvd", "dvd-dl", "bd", "700M" or "8G".  Raises ValueError."""
    if text.lower() in MEDIA:
        return MEDIA[text.lower()]
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"{text!a} is no size of a medium; write {', '.join(MEDIA)}, 700M or 8G")
    return int(found[1]) << _POWERS[found[2].upper()]
