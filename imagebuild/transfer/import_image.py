"""An image out of the tar of a root filesystem, as ``docker import`` makes it."""

from __future__ import annotations

import json
import platform as host_platform
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from imagebuild.digest import digest_of
from imagebuild.errors import SourceError
from imagebuild.layer.decompress import Compression, detect
from imagebuild.layer.layer import ConvertedLayer, convert
from imagebuild.oci.imageconfig import parse_config
from imagebuild.oci.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Manifest, parse_manifest
from imagebuild.oci.platforms import Platform
from imagebuild.store.image import Image, LayerRecord
from imagebuild.store.kinds import LAYER_KIND
from imagebuild.store.layer_store import LayerFacts
from imagebuild.store.lease import Needs
from imagebuild.store.store import Store, layer_key

_CHUNK = 256 << 10
_STEP = "import image"
_SUFFIXES = {Compression.NONE: "", Compression.GZIP: "+gzip", Compression.ZSTD: "+zstd"}


def import_image(
    store: Store,
    file: IO[bytes],
    *,
    names: Sequence[str] = (),
    platform: Platform | None = None,
    changes: Sequence[str] = (),
    comment: str = "",
    keep_blobs: bool = True,
    now: float | None = None,
) -> Image:
    """Make an image of one layer from ``file``, a tar stream, compressed or not.

    ``changes`` are Dockerfile instructions (CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR).
    ``now`` is the image's time of creation in seconds since 1970.  Raises OperationError.
    """
    settings = _settings(changes)
    wanted = platform or Platform.of("linux", host_platform.machine())
    with store.workspace() as space:
        blob, image = space / "blob", space / "layer.erofs"
        chunks = _head_first(file)
        suffix = _SUFFIXES[detect(next(chunks))]
        made = convert(_kept(chunks, blob) if keep_blobs else chunks, destination=image)
        config = _config(made, wanted, settings, comment, time.time() if now is None else now)
        manifest = _manifest(config, made, OCI_LAYER + suffix)
        key = layer_key(made.diff_id, LAYER_KIND)
        blobs = frozenset([manifest.digest, digest_of(config), made.digest])
        with store.lease(Needs(layers=frozenset([key]), blobs=blobs)):
            if not store.layer_path(key).exists():
                store.adopt_layer(image, key, LayerFacts.of_layer(image, made).to_json())
            if keep_blobs:
                store.adopt_blob(blob, made.digest)
            layer = manifest.layers[0]
            record = LayerRecord(
                made.diff_id, key, layer.digest, layer.size, layer.media_type, data_size=made.image_size
            )
            return store.add(manifest, parse_config(config), [record], names=names)


def _head_first(file: IO[bytes]) -> Iterator[bytes]:
    """The first chunk once to look at, and then all of them."""
    first = file.read(_CHUNK)
    if not first:
        raise SourceError(_STEP, "archive", "is empty", "give the tar of a root filesystem")
    yield first
    yield first
    while chunk := file.read(_CHUNK):
        yield chunk


def _kept(chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    with path.open("wb", buffering=0) as file:
        for chunk in chunks:
            file.write(chunk)
            yield chunk


def _config(made: ConvertedLayer, platform: Platform, settings: dict[str, Any], comment: str, now: float) -> bytes:
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    document = {
        "created": created,
        "architecture": platform.architecture,
        **({"variant": platform.variant} if platform.variant else {}),
        "os": platform.os,
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [made.diff_id]},
        "history": [{"created": created, "comment": comment or "imported"}],
    }
    return json.dumps(document).encode()


def _manifest(config: bytes, made: ConvertedLayer, media_type: str) -> Manifest:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)},
        "layers": [{"mediaType": media_type, "digest": made.digest, "size": made.compressed_size}],
    }
    manifest = parse_manifest(json.dumps(document).encode(), OCI_MANIFEST)
    if not isinstance(manifest, Manifest):
        raise TypeError("a manifest with layers was read as an index")
    return manifest


def _settings(changes: Sequence[str]) -> dict[str, Any]:
    """The config that Dockerfile instructions make; SourceError for one that is not known."""
    settings: dict[str, Any] = {}
    for change in changes:
        word, _, rest = change.strip().partition(" ")
        instruction, rest = word.upper(), rest.strip()
        if instruction in ("CMD", "ENTRYPOINT"):
            settings[instruction.capitalize()] = _command(rest)
        elif instruction in ("ENV", "LABEL"):
            pairs = _pairs(rest, change)
            if instruction == "ENV":
                settings.setdefault("Env", []).extend(f"{name}={value}" for name, value in pairs.items())
            else:
                settings.setdefault("Labels", {}).update(pairs)
        elif instruction in ("USER", "STOPSIGNAL", "WORKDIR"):
            settings[{"USER": "User", "STOPSIGNAL": "StopSignal", "WORKDIR": "WorkingDir"}[instruction]] = rest
        elif instruction == "EXPOSE":
            ports = (port if "/" in port else f"{port}/tcp" for port in rest.split())
            settings.setdefault("ExposedPorts", {}).update({port: {} for port in ports})
        elif instruction == "VOLUME":
            settings.setdefault("Volumes", {}).update({path: {} for path in _list(rest) or rest.split()})
        else:
            known = "CMD ENTRYPOINT ENV EXPOSE LABEL STOPSIGNAL USER VOLUME WORKDIR"
            raise SourceError(_STEP, change, f"{word!a} is no instruction that can be given here", f"known: {known}")
    return settings


def _list(text: str) -> list[str] | None:
    """The words of a JSON array; None if ``text`` is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return [str(word) for word in found] if isinstance(found, list) else None


def _command(text: str) -> list[str]:
    """A command in the exec form (a JSON array) or the shell form."""
    words = _list(text)
    return ["/bin/sh", "-c", text] if words is None else words


def _pairs(text: str, change: str) -> dict[str, str]:
    """``NAME=VALUE NAME="VALUE WITH SPACES"``, or the old ``NAME VALUE``."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SourceError(_STEP, change, str(error)) from None
    if words and "=" not in words[0]:
        name, _, value = text.partition(" ")
        return {name: value.strip()}
    return {name: value for name, _, value in (word.partition("=") for word in words)}
