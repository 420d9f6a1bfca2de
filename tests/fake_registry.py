"""A registry for tests, on loopback, that does what real ones do on their worst day.

    with FakeRegistry() as fake:
        image = fake.add_image("app", [layer])          # fake.address + "/app:latest"
        fake.fail("GET", "/blobs/", Fault.RESET, times=2)

It speaks the pull and push parts of the distribution-spec, Basic and Bearer authentication with its own token server,
and can send blobs from a second server at 127.0.0.2, another host, as registries with object storage do.  Every request
is kept in ``seen``.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tests.fake_registry_server import (
    IDENTITY_TOKEN,
    PASSWORD,
    STORAGE_HOST,
    USER,
    Fault,
    Plan,
    Seen,
    basic,
    serve,
    sha256,
)

__all__ = [
    "IDENTITY_TOKEN",
    "PASSWORD",
    "USER",
    "FakeImage",
    "FakeRegistry",
    "Fault",
    "basic",
    "describe",
    "fake_registry",
    "sha256",
]

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True)
class FakeImage:
    """What was put into the registry."""

    manifest: bytes
    manifest_digest: str
    config: bytes
    layers: tuple[bytes, ...]


@dataclass
class FakeRegistry:
    """The server and its content.  ``auth`` is "", "basic", "bearer" or "bearer+basic" (both in one header)."""

    auth: str = ""
    redirect_blobs: bool = False
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    repositories_of: dict[str, set[str]] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    seen: list[Seen] = field(default_factory=list)
    seen_by_storage: list[Seen] = field(default_factory=list)
    page_size: int = 2
    anonymous_tokens: bool = True
    connections: int = 0  # accepted by both servers together
    _plans: list[Plan] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> FakeRegistry:
        self.released = threading.Event()  # ends every stall
        self._main = serve("127.0.0.1", self, is_storage=False)
        self._storage = serve(STORAGE_HOST, self, is_storage=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        for server in (self._main, self._storage):
            server.shutdown()
            server.server_close()

    @property
    def address(self) -> str:
        """``host:port``, as it stands in an image name."""
        return f"127.0.0.1:{self._main.server_address[1]}"

    @property
    def storage_address(self) -> str:
        """``host:port`` of the second server."""
        return f"{STORAGE_HOST}:{self._storage.server_address[1]}"

    # --- content -----------------------------------------------------------------------------------------------------

    def add_blob(self, data: bytes, repository: str = "app") -> str:
        """Store a blob; its digest."""
        digest = sha256(data)
        self.blobs[digest] = data
        self.repositories_of.setdefault(digest, set()).add(repository)
        return digest

    def add_manifest(self, repository: str, tag: str, document: object, media_type: str = OCI_MANIFEST) -> bytes:
        """Store a manifest under its tag and its digest; its bytes."""
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        for target in (tag, sha256(raw)):
            self.manifests[repository, target] = media_type, raw
        return raw

    def add_image(
        self,
        repository: str,
        layers: list[bytes],
        tag: str = "latest",
        architecture: str = "amd64",
        config: Mapping[str, object] | None = None,
    ) -> FakeImage:
        """Store an OCI image whose layers are these tar streams, which are gzipped."""
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        }
        raw_config = json.dumps(document).encode()
        packed = tuple(gzip.compress(layer, compresslevel=1, mtime=0) for layer in layers)
        for blob in (raw_config, *packed):
            self.add_blob(blob, repository)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": describe(OCI_CONFIG, raw_config),
            "layers": [describe(OCI_LAYER_GZIP, blob) for blob in packed],
        }
        raw = self.add_manifest(repository, tag, manifest)
        return FakeImage(raw, sha256(raw), raw_config, packed)

    # --- faults ------------------------------------------------------------------------------------------------------

    def fail(
        self,
        method: str,
        path: str,
        fault: Fault,
        *,
        times: int = 1,
        status: int = 500,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Spoil the next ``times`` answers to requests whose method and path (a regular expression) match."""
        self._plans.append(Plan(method, re.compile(path), fault, times, status, headers or {}))

    def plan_for(self, method: str, path: str) -> Plan | None:
        """The fault for a request, used up by one."""
        with self._lock:
            for plan in self._plans:
                if plan.times > 0 and plan.method == method and plan.path.search(path):
                    plan.times -= 1
                    return plan
        return None

    def expire_tokens(self) -> None:
        """Refuse all tokens given out so far."""
        self.tokens.clear()

    def count(self, method: str, path: str) -> int:
        """How many requests matched."""
        return sum(1 for one in self.seen if one.method == method and re.search(path, one.path))


def describe(media_type: str, data: bytes, **more: object) -> dict[str, Any]:
    """A descriptor of ``data``."""
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data)} | more


@contextlib.contextmanager
def fake_registry(**options: Any) -> Iterator[FakeRegistry]:
    """A running fake registry."""
    with FakeRegistry(**options) as fake:
        yield fake
