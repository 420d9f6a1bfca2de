"""Small images for tests: layers as tar streams, OCI layouts, and archives as Docker of several ages writes them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


def sha256(data: bytes) -> str:
    """The digest of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A tar stream of these files; a name that ends in a slash is a directory."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.mtime = 1_600_000_000
            if name.endswith("/"):
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def some_layers(count: int = 3, size: int = 20_000, seed: int = 1) -> list[bytes]:
    """Layers that have each a file of their own; content that does not compress, so that sizes are what they say."""
    chance = random.Random(seed)
    return [tar_of({"etc/": b"", f"etc/file-{seed}-{n}": chance.randbytes(size)}) for n in range(count)]


def config_of(layers: Sequence[bytes], architecture: str = "amd64", **more: Any) -> bytes:
    """An image config."""
    document = {
        "architecture": architecture,
        "os": "linux",
        "created": "2026-01-02T03:04:05Z",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        "history": [{"created_by": f"step {n}"} for n in range(len(layers))],
    }
    return json.dumps(document | more).encode()


def _describe(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}


def oci_blobs(layers: Sequence[bytes], config: bytes, packed: bool = True) -> tuple[bytes, dict[str, bytes]]:
    """An OCI manifest, and all blobs of the image by digest."""
    blobs = [gzip.compress(layer, 1, mtime=0) if packed else layer for layer in layers]
    media_type = OCI_LAYER + ("+gzip" if packed else "")
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _describe(OCI_CONFIG, config),
        "layers": [_describe(media_type, blob) for blob in blobs],
    }
    manifest = json.dumps(document).encode()
    return manifest, {sha256(blob): blob for blob in (*blobs, config, manifest)}


def layout_files(images: Mapping[str, Sequence[bytes]], architecture: str = "amd64") -> dict[str, bytes]:
    """The files of an OCI layout with these images by tag."""
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    entries = []
    for tag, layers in images.items():
        manifest, blobs = oci_blobs(layers, config_of(layers, architecture))
        files |= {"blobs/" + digest.replace(":", "/"): blob for digest, blob in blobs.items()}
        entries.append(_describe(OCI_MANIFEST, manifest, annotations={"org.opencontainers.image.ref.name": tag}))
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    return files


def write_layout(folder: Path, images: Mapping[str, Sequence[bytes]], architecture: str = "amd64") -> Path:
    """An OCI layout in ``folder``."""
    for name, content in layout_files(images, architecture).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def old_docker_archive(images: Mapping[str, Sequence[bytes]]) -> bytes:
    """An archive as Docker 1.10 to 24 writes it: a folder per layer, a config, manifest.json, repositories."""
    files: dict[str, bytes] = {}
    manifest, repositories = [], {}
    for name, layers in images.items():
        config = config_of(layers)
        names = []
        for layer in layers:
            folder = sha256(layer)[7:]
            files |= {f"{folder}/": b"", f"{folder}/VERSION": b"1.0", f"{folder}/layer.tar": layer}
            names.append(f"{folder}/layer.tar")
        config_name = sha256(config)[7:] + ".json"
        files[config_name] = config
        manifest.append({"Config": config_name, "RepoTags": [name], "Layers": names})
        repositories[name.partition(":")[0]] = {name.partition(":")[2]: names[-1][:64]}
    files["manifest.json"] = json.dumps(manifest).encode()
    files["repositories"] = json.dumps(repositories).encode()
    return tar_of(files)


def new_docker_archive(name: str, layers: Sequence[bytes]) -> bytes:
    """An archive as Docker since 25 writes it: an OCI layout with a manifest.json beside it."""
    config = config_of(layers)
    manifest, blobs = oci_blobs(layers, config, packed=False)
    annotations = {"io.containerd.image.name": f"docker.io/library/{name}", "org.opencontainers.image.ref.name": "1"}
    files = {"blobs/" + digest.replace(":", "/"): blob for digest, blob in blobs.items()}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    entry = _describe(OCI_MANIFEST, manifest, annotations=annotations)
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    saved = {
        "Config": "blobs/sha256/" + sha256(config)[7:],
        "RepoTags": [name],
        "Layers": ["blobs/sha256/" + sha256(layer)[7:] for layer in layers],
    }
    files["manifest.json"] = json.dumps([saved]).encode()
    return tar_of(files)


def docker_v1_archive(images: Mapping[str, Sequence[bytes]]) -> bytes:
    """An archive as Docker before 1.10 writes it: a folder per layer, each with its parent, and repositories."""
    files: dict[str, bytes] = {}
    repositories: dict[str, dict[str, str]] = {}
    for name, layers in images.items():
        parent = ""
        for number, layer in enumerate(layers):
            here = sha256(f"{name} {number}".encode())[7:]  # IDs were random numbers then
            described = {
                "id": here,
                "created": f"2014-01-02T03:04:0{number}Z",
                "container_config": {"Cmd": ["/bin/sh", "-c", f"#(nop) step {number}"]},
                "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "Hostname": "old"},
                "architecture": "amd64",
                "os": "linux",
                "docker_version": "1.6.2",
                "Size": len(layer),
            } | ({"parent": parent} if parent else {})
            files |= {f"{here}/": b"", f"{here}/VERSION": b"1.0", f"{here}/json": json.dumps(described).encode()}
            files[f"{here}/layer.tar"] = layer
            parent = here
        repository, _, tag = name.rpartition(":")
        repositories.setdefault(repository, {})[tag] = parent
    files["repositories"] = json.dumps(repositories).encode()
    return tar_of(files)
