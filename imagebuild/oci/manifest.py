"""Manifests and indexes, of OCI and of Docker (schema 2), as checked and frozen values.

Sources: OCI image-spec ``descriptor.md``, ``manifest.md``, ``image-index.md``; Docker's "Image Manifest Version 2,
Schema 2".  The two families differ only in their media types, so one class serves both.  Everything is hostile until
it has been through here; the raw bytes are kept, because only they have the digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from imagebuild.digest import digest_of, digest_problem
from imagebuild.errors import ManifestError
from imagebuild.jsoncheck import Node, load_document
from imagebuild.oci.platforms import Platform, choose

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
SCHEMA1_TYPES = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
# What to send as Accept, in order of preference.
ACCEPT = ", ".join((OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST))

# Docker builds at most 127 layers.  An image's disk gives each layer one of Linux's 255 partitions, and two are spare.
MAX_LAYERS = 253
# The largest official index has about 60 entries; the bound only keeps a hostile one cheap.
MAX_INDEX_ENTRIES = 1024
MAX_ANNOTATIONS = 1024

_ATTESTATION = "vnd.docker.reference.type"  # BuildKit's annotation on entries that describe another entry


class Compression(Enum):
    """How a layer's tar stream is packed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


# Every media type of a layer that can be unpacked.  The foreign and nondistributable ones are deprecated, and for
# Linux they hold the same tar streams.
LAYER_TYPES: Mapping[str, Compression] = {
    OCI_LAYER: Compression.NONE,
    f"{OCI_LAYER}+gzip": Compression.GZIP,
    f"{OCI_LAYER}+zstd": Compression.ZSTD,
    "application/vnd.oci.image.layer.nondistributable.v1.tar": Compression.NONE,
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": Compression.GZIP,
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": Compression.ZSTD,
    DOCKER_LAYER: Compression.NONE,
    f"{DOCKER_LAYER}.gzip": Compression.GZIP,
    f"{DOCKER_LAYER}.zstd": Compression.ZSTD,
    "application/vnd.docker.image.rootfs.foreign.diff.tar": Compression.NONE,
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": Compression.GZIP,
}


_NOTHING: Mapping[str, str] = MappingProxyType({})


class Descriptor(NamedTuple):
    """A pointer to content: its type, digest and exact size in bytes (OCI descriptor.md)."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = _NOTHING

    def __hash__(self) -> int:
        return hash((self.media_type, self.digest))  # annotations have no hash

    @property
    def compression(self) -> Compression:
        """How this layer is packed; only for a descriptor out of ``Manifest.layers``."""
        return LAYER_TYPES[self.media_type]


class Index(NamedTuple):
    """A list of manifests, usually one per platform."""

    media_type: str
    entries: tuple[Descriptor, ...]
    raw: bytes

    def __repr__(self) -> str:
        return f"Index({digest_of(self.raw)})"

    def choose(self, wanted: Platform, subject: str) -> Descriptor:
        """The manifest (or nested index) for ``wanted``; ManifestError lists what there is instead."""
        return choose(self.images(), wanted, subject)

    def images(self) -> tuple[Descriptor, ...]:
        """The entries that lead to images: no attestations, signatures or other artifacts."""
        known = MANIFEST_TYPES | INDEX_TYPES
        return tuple(
            entry
            for entry in self.entries
            if entry.media_type in known
            and _ATTESTATION not in entry.annotations
            and not (entry.platform and entry.platform.is_unknown)
        )


class Manifest(NamedTuple):
    """One image for one platform: its config and its layers, lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]
    raw: bytes

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"Manifest({self.digest})"

    @property
    def digest(self) -> str:
        """The sha256 digest of the raw bytes, by which registries know the manifest."""
        return digest_of(self.raw)


def parse_manifest(raw: bytes, media_type: str = "", subject: str = "") -> Manifest | Index:
    """Parse and check a manifest or index; ManifestError says what is wrong with it.

    ``media_type`` is what the source declared (a Content-Type or a descriptor's type), empty if it did not.  A
    document's own ``mediaType`` must agree with it: a text that is a manifest to one reader and an index to another
    can smuggle content past a check (CVE-2021-41190).
    """
    root = load_document(raw, f"manifest {subject or digest_of(raw)}")
    kind = _kind_of(root, media_type.partition(";")[0].strip().lower())
    return _index(root, kind, raw) if kind in INDEX_TYPES else _manifest(root, kind, raw)


def _kind_of(root: Node, declared: str) -> str:
    """The document's media type, out of what the source says, what it says itself, and its shape."""
    own = root.text("mediaType")
    known = INDEX_TYPES | MANIFEST_TYPES | SCHEMA1_TYPES
    if own and declared in known and own != declared:
        root.fail("mediaType", f"{own!a} contradicts the declared type {declared}")
    kind = own or (declared if declared in known else "") or _kind_by_shape(root)
    if kind in SCHEMA1_TYPES or root.fields.get("schemaVersion") == 1:
        raise ManifestError(
            "read image metadata",
            root.document,
            "this image has only a schema 1 manifest, a format that cannot be verified and that Docker gave up",
            "push the image again with any Docker since 1.10, skopeo or a registry's converter",
        )
    if kind not in known:
        root.fail("mediaType", f"{kind!a} is neither an image manifest nor an index")
    if root.integer("schemaVersion") != 2:
        root.fail("schemaVersion", "expected 2")
    _refuse_both_shapes(root, kind)
    return kind


def _kind_by_shape(root: Node) -> str:
    """OCI documents need not carry their type: an index has manifests, a manifest a config."""
    if root.fields.get("manifests") is not None:
        return OCI_INDEX
    if root.fields.get("config") is not None:
        return OCI_MANIFEST
    return "" if root.fields.get("schemaVersion") != 1 else next(iter(SCHEMA1_TYPES))


def _refuse_both_shapes(root: Node, kind: str) -> None:
    foreign = ("config", "layers", "fsLayers") if kind in INDEX_TYPES else ("manifests", "fsLayers")
    for key in foreign:
        if root.fields.get(key) is not None:
            root.fail(key, f"has no place in a document of type {kind}")


def _index(root: Node, kind: str, raw: bytes) -> Index:
    return Index(kind, tuple(_descriptor(node) for node in root.nodes("manifests", MAX_INDEX_ENTRIES)), raw)


def _manifest(root: Node, kind: str, raw: bytes) -> Manifest:
    config_node = root.node("config")
    if config_node is None:
        root.fail("config", "missing")
    config = _descriptor(config_node)
    if config.media_type not in CONFIG_TYPES:
        config_node.fail("mediaType", f"{config.media_type!a}: this is an artifact, not an image that can run")
    layers = []
    for node in root.nodes("layers", MAX_LAYERS):
        layer = _descriptor(node)
        if layer.media_type not in LAYER_TYPES:
            node.fail("mediaType", f"{layer.media_type!a} is not a layer that can be unpacked")
        layers.append(layer)
    annotations = MappingProxyType(root.text_map("annotations", MAX_ANNOTATIONS))
    return Manifest(kind, config, tuple(layers), annotations, raw)


def _descriptor(node: Node) -> Descriptor:
    media_type = node.text("mediaType")
    if not media_type:
        node.fail("mediaType", "missing")
    digest = node.text("digest")
    if problem := digest_problem(digest):
        node.fail("digest", problem)
    if node.fields.get("size") is None:
        node.fail("size", "missing")
    platform = node.node("platform")
    return Descriptor(
        media_type=media_type,
        digest=digest,
        size=node.integer("size"),
        platform=_platform(platform) if platform else None,
        annotations=MappingProxyType(node.text_map("annotations", MAX_ANNOTATIONS)),
    )


def _platform(node: Node) -> Platform | None:
    os, architecture = node.text("os"), node.text("architecture")
    # An empty platform object says as much as none (old buildah).
    return Platform.of(os, architecture, node.text("variant")) if os or architecture else None
