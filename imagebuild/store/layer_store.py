"""One layer on its way into the store: converted once, whoever else wants it at the same time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isal import isal_zlib

from imagebuild.digest import hasher_for
from imagebuild.errors import LayerError
from imagebuild.files import explained
from imagebuild.layer.layer import ConvertedLayer, convert
from imagebuild.layer.patch import WrittenPatch
from imagebuild.layer.tree import Needs
from imagebuild.oci.manifest import Descriptor
from imagebuild.store.kinds import VERITY_KIND
from imagebuild.store.store import Store, layer_key
from imagebuild.transfer.parallel import Stop
from imagebuild.transfer.progress import Phase, Progress, Report

OpenBlob = Callable[[Descriptor], AbstractContextManager[Iterator[bytes]]]
_READ = 1 << 20


@dataclass(frozen=True)
class LayerFacts:
    """What is written beside a converted layer: its size and CRC-32, to verify it by, and what it needs from below.

    ``data_size`` is the size of the file system alone, and ``verity_root`` the root hash (hex) of the hash tree behind
    it, if there is one.

    A CRC because it finds what disks do to files at a thirtieth of the cost of a cryptographic digest; who can write to
    the store can do anything anyway.
    """

    size: int
    crc32: int
    tar_size: int
    entries: int
    needs: Needs
    data_size: int
    verity_root: str = ""

    def to_json(self) -> bytes:
        """The facts as a file holds them; names are bytes, so they are written as Latin-1."""
        document = {
            "size": self.size,
            "crc32": self.crc32,
            "tar_size": self.tar_size,
            "entries": self.entries,
            "links": [[name.decode("latin-1"), target.decode("latin-1")] for name, target in self.needs.links],
            "parents": [name.decode("latin-1") for name in self.needs.parents],
            "opaque_root": self.needs.opaque_root,
            "data_size": self.data_size,
            "verity_root": self.verity_root,
        }
        return json.dumps(document).encode()

    @classmethod
    def of_layer(cls, image: Path, made: ConvertedLayer) -> LayerFacts:
        """The facts of the finished layer file ``image``."""
        size, crc32 = image.stat().st_size, file_crc32(image)
        root = made.verity_root or ""
        return cls(size, crc32, made.tar_size, made.entries, made.needs, made.image_size, root)

    @classmethod
    def of_patch(cls, image: Path, made: WrittenPatch) -> LayerFacts:
        """The facts of the finished patch file ``image``."""
        return cls(image.stat().st_size, file_crc32(image), 0, 0, Needs(), made.image_size, made.verity_root)

    @classmethod
    def from_json(cls, raw: bytes) -> LayerFacts:
        """Read facts back; ValueError, KeyError or TypeError if they are damaged."""
        document: dict[str, Any] = json.loads(raw)
        links = tuple((name.encode("latin-1"), target.encode("latin-1")) for name, target in document["links"])
        parents = tuple(name.encode("latin-1") for name in document["parents"])
        needs = Needs(links, parents, bool(document["opaque_root"]))
        return cls(
            document["size"],
            document["crc32"],
            document["tar_size"],
            document["entries"],
            needs,
            document.get("data_size", document["size"]),
            document.get("verity_root", ""),
        )


def file_crc32(path: Path) -> int:
    """The CRC-32 of a file."""
    checksum = 0
    buffer = memoryview(bytearray(_READ))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            checksum = isal_zlib.crc32(buffer[:count], checksum)
    return checksum


@dataclass(frozen=True)
class LayerJob:
    """One layer to bring into the store."""

    store: Store
    descriptor: Descriptor
    diff_id: str
    kind: str
    open_blob: OpenBlob
    keep_blob: bool
    stop: Stop
    report: Report

    @property
    def key(self) -> str:
        """The name of the layer's file."""
        return layer_key(self.diff_id, self.kind)

    def run(self) -> None:
        """Have the layer, and its blob if that is to be kept, in the store when this returns."""
        if self._is_done():
            self._tell(Phase.PRESENT, self.descriptor.size)
            return
        with explained("store layer", self.descriptor.digest), self.store.layer_lock(self.key, self._waiting):
            if self._is_done():  # the other process did it
                self._tell(Phase.PRESENT, self.descriptor.size)
                return
            self._tell(Phase.RUNNING, 0)
            self._bring()
        self._tell(Phase.DONE, self.descriptor.size)

    def _is_done(self) -> bool:
        return self.store.layer_path(self.key).exists() and not self._wants_blob()

    def _wants_blob(self) -> bool:
        return self.keep_blob and not self.store.has_blob(self.descriptor.digest)

    def _bring(self) -> None:
        """Read the blob once, and make of it what is missing."""
        with ExitStack() as stack:
            space = stack.enter_context(self.store.workspace())
            chunks = self._watched(stack.enter_context(self.open_blob(self.descriptor)))
            blob = space / "blob"
            if self._wants_blob():
                chunks = _teed(chunks, blob)
            if self.store.layer_path(self.key).exists():
                self._verify(chunks)
            else:
                self._convert(chunks, space / "layer.erofs")
            if blob.exists():
                self.store.adopt_blob(blob, self.descriptor.digest)

    def _convert(self, chunks: Iterator[bytes], image: Path) -> None:
        descriptor = self.descriptor
        try:
            converted = convert(
                chunks,
                destination=image,
                digest=descriptor.digest,
                size=descriptor.size,
                diff_id=self.diff_id,
                verity=self.kind == VERITY_KIND,
            )
        except LayerError as error:
            if descriptor.digest in error.subject:
                raise
            # The converter knows where in the layer, and a person wants to know in which layer, too.
            where = "" if error.subject == "the layer" else f": {error.subject}"
            raise LayerError(error.step, f"layer {descriptor.digest}{where}", error.cause, error.remedy) from error
        self.stop.check()
        self.store.adopt_layer(image, self.key, LayerFacts.of_layer(image, converted).to_json())

    def _verify(self, chunks: Iterator[bytes]) -> None:
        """Read a blob that is only kept, and hold it to its digest."""
        digest, size = hasher_for(self.descriptor.digest), 0
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
        if size != self.descriptor.size or digest.hexdigest() != self.descriptor.digest.partition(":")[2]:
            raise LayerError("verify", self.descriptor.digest, f"its {size} bytes have another digest", "pull it again")

    def _watched(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks, counted for the report, until someone asks to stop."""
        done = 0
        for chunk in chunks:
            self.stop.check()
            yield chunk
            done += len(chunk)
            self._tell(Phase.RUNNING, done)

    def _waiting(self) -> None:
        self.stop.check()
        self._tell(Phase.WAITING, 0)

    def _tell(self, phase: Phase, done: int) -> None:
        self.report(Progress(self.descriptor.digest, phase, done, self.descriptor.size))


def _teed(chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """The chunks, which are also written to ``path``."""
    with path.open("wb", buffering=0) as file:
        for chunk in chunks:
            file.write(chunk)
            yield chunk
