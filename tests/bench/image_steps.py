"""What bench_images.py measures, each in a process of its own that says at the end what it used.

    python image_steps.py download REFERENCE           all blobs from a registry to nowhere
    python image_steps.py pull NAME STORE [WORKERS]    into an empty store; at most so many layers side by side
    python image_steps.py second NAME OTHER STORE      OTHER, after NAME with which it shares layers
    python image_steps.py huge STORE                   an image of one layer of 4 GiB

Importing is not measured: it is the same for all, and dwarfs small images.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isal import igzip

from imagebuild.oci.imageconfig import parse_config
from imagebuild.oci.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, Manifest, parse_manifest
from imagebuild.oci.platforms import Platform
from imagebuild.oci.reference import Reference
from imagebuild.registry.registry import Registry
from imagebuild.sources.source import Source, SourceImage
from imagebuild.store.store import Store
from imagebuild.transfer import bring, fetch
from imagebuild.transfer.pulling import pull

HUGE_PIECES, PIECE = 4096, 1 << 20  # 4 GiB


def download(reference: str) -> None:
    """Every blob of an image, one after the other: loopback is faster than anything that would read it."""
    name = Reference.parse(reference)
    with Registry() as registry:
        found = registry.resolve(name, Platform.host())
        for layer in found.manifest.layers:
            with registry.blob(name, layer) as stream:
                for _ in stream:
                    pass


def huge(store: Store) -> None:
    """A layer with one file of 4 GiB that hardly compresses, made while it is read."""
    with HugeSource() as source:
        resources.begin()  # hashing it in advance is not part of a pull
        fetch.fetch(source, store)


class HugeSource(Source):
    """An image of one layer; its gzip stream has a member for each piece of the file."""

    def __init__(self) -> None:
        info = tarfile.TarInfo("huge")
        info.size = HUGE_PIECES * PIECE
        piece = random.Random(1).randbytes(PIECE)
        end = bytes(2 * tarfile.BLOCKSIZE)
        header = info.tobuf(tarfile.GNU_FORMAT)
        self._head, self._piece, self._end = (igzip.compress(part, 1) for part in (header, piece, end))
        diff_id = hashlib.sha256(header)
        for _ in range(HUGE_PIECES):
            diff_id.update(piece)
        diff_id.update(end)
        digest, size = hashlib.sha256(), 0
        for chunk in self._chunks():
            digest.update(chunk)
            size += len(chunk)
        config = {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id.hexdigest()}"]},
        }
        self._config = parse_config(json.dumps(config).encode())
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": self._config.digest, "size": len(self._config.raw)},
            "layers": [{"mediaType": OCI_LAYER + "+gzip", "digest": f"sha256:{digest.hexdigest()}", "size": size}],
        }
        self._manifest = parse_manifest(json.dumps(manifest).encode(), OCI_MANIFEST)

    def _chunks(self) -> Iterator[bytes]:
        for part in (self._head, *[self._piece] * HUGE_PIECES, self._end):
            for at in range(0, len(part), 1 << 18):
                yield part[at : at + (1 << 18)]

    def resolve(self, platform: Platform | None) -> SourceImage:
        assert isinstance(self._manifest, Manifest)
        return SourceImage(self._manifest.digest, self._manifest, self._config, ("huge",))

    @contextmanager
    def blob(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        yield self._chunks()


class Resources:
    """What this process used since `begin`."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forgets what was used, the peak of memory too."""
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
        self._wall, self._cpu, self._held = time.monotonic(), self._cpu_now(), self._status("VmRSS")

    def say(self) -> None:
        """Prints it: seconds of CPU and by the clock, MiB of memory at most, MiB at the beginning."""
        used = {
            "cpu": self._cpu_now() - self._cpu,
            "wall": time.monotonic() - self._wall,
            "peak_mib": self._status("VmHWM"),
            "began_mib": self._held,
        }
        print(json.dumps(used))

    @staticmethod
    def _cpu_now() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    @staticmethod
    def _status(key: str) -> float:
        return int(Path("/proc/self/status").read_text().partition(f"{key}:")[2].split()[0]) / 1024


resources = Resources()


def main(step: str, *words: str) -> None:
    """One step."""
    if step == "download":
        download(words[0])
    elif step == "pull":
        if len(words) > 2:
            bring._MAX_WORKERS = int(words[2])
        pull(words[0], store=Store(Path(words[1])))
    elif step == "second":
        store = Store(Path(words[2]))
        pull(words[0], store=store)
        before = {path.name for path in (store.root / "layers").iterdir()}
        resources.begin()
        pull(words[1], store=store)
        new = {path.name for path in (store.root / "layers").iterdir()} - before
        assert len([name for name in new if name.endswith(".erofs")]) == 1, new
    else:
        huge(Store(Path(words[0])))
    resources.say()


if __name__ == "__main__":
    main(*sys.argv[1:])
