"""OCI image layouts (image-spec, image-layout.md), in a folder or in an archive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from imagebuild.digest import verify_bytes
from imagebuild.errors import ImageNameError, ManifestError, SourceError
from imagebuild.jsoncheck import load_document
from imagebuild.oci.imageconfig import check_pair, check_platform, parse_config
from imagebuild.oci.manifest import OCI_INDEX, Descriptor, Index, Manifest, parse_manifest
from imagebuild.oci.platforms import Platform, choose
from imagebuild.oci.reference import Reference
from imagebuild.sources.bundle import Bundle
from imagebuild.sources.source import Source, SourceImage

LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
LAYOUT_VERSION = "1.0.0"
REF_NAME = "org.opencontainers.image.ref.name"  # by the specification a tag; some tools write a whole name
FULL_NAME = "io.containerd.image.name"  # containerd's and Docker's annotation for the whole name
_MAX_DEPTH = 4  # of indexes in indexes; two occur
_STEP = "read OCI layout"


class OciLayout(Source):
    """An image in an OCI layout.  ``tag`` picks one of several, by its tag or whole name; "" wants the only one."""

    def __init__(self, bundle: Bundle, tag: str, fallback_name: str) -> None:
        self._bundle, self._tag, self._fallback_name = bundle, tag, fallback_name
        version = load_document(bundle.read(LAYOUT_FILE), LAYOUT_FILE).text("imageLayoutVersion")
        if version != LAYOUT_VERSION:
            raise SourceError(_STEP, bundle.spelled, f"its version is {version!a}, and {LAYOUT_VERSION} is known")

    def resolve(self, platform: Platform | None) -> SourceImage:
        wanted = platform or Platform.host()
        entry = self._entry(wanted)
        found, digest = self._document(entry), entry.digest
        for _ in range(_MAX_DEPTH):
            if isinstance(found, Manifest):
                break
            inner = found.choose(wanted, self._bundle.spelled)
            found, digest = self._document(inner), inner.digest
        if not isinstance(found, Manifest):
            raise ManifestError("choose platform", self._bundle.spelled, "its indexes are nested too deeply")
        raw = self._bundle.read(blob_name(found.config.digest))
        verify_bytes(raw, found.config.digest, "config")
        config = parse_config(raw, found.config.digest)
        check_pair(found, config, self._bundle.spelled)
        check_platform(config, wanted, self._bundle.spelled)
        return SourceImage(digest, found, config, (self._name(entry),))

    @contextmanager
    def blob(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        yield self._bundle.chunks(blob_name(descriptor.digest))

    def close(self) -> None:
        self._bundle.close()

    def entries(self) -> tuple[Descriptor, ...]:
        """The images of the layout's index."""
        index = parse_manifest(self._bundle.read(INDEX_FILE), OCI_INDEX, INDEX_FILE)
        if not isinstance(index, Index):
            raise SourceError(_STEP, self._bundle.spelled, f"{INDEX_FILE} is no index")
        return index.images()

    def _entry(self, wanted: Platform) -> Descriptor:
        """The entry of the index that is meant."""
        entries = self.entries()
        matches = [entry for entry in entries if not self._tag or _is_called(entry, self._tag)]
        if not matches:
            has = ", ".join(sorted(filter(None, map(_label, entries)))) or "no tags"
            cause = f"there is no {self._tag!a}" if self._tag else "there is no image"
            raise SourceError(_STEP, self._bundle.spelled, cause, f"it has {has}")
        if len(matches) > 1 and len({_label(entry) for entry in matches}) > 1:
            has = ", ".join(sorted(map(_label, matches)))
            raise SourceError(_STEP, self._bundle.spelled, f"there are {len(matches)} images", f"name one of {has}")
        # Entries of one name are one image for several platforms.
        return matches[0] if len(matches) == 1 else choose(matches, wanted, self._bundle.spelled)

    def _document(self, entry: Descriptor) -> Manifest | Index:
        raw = self._bundle.read(blob_name(entry.digest))
        verify_bytes(raw, entry.digest, "manifest")
        return parse_manifest(raw, entry.media_type, entry.digest)

    def _name(self, entry: Descriptor) -> str:
        for name in (entry.annotations.get(FULL_NAME, ""), entry.annotations.get(REF_NAME, "")):
            # A lone word is a tag by the specification, although it would parse as the name of an image.
            if "/" in name or ":" in name:
                try:
                    return str(Reference.parse(name))
                except ImageNameError:
                    continue
        return self._fallback_name


def blob_name(digest: str) -> str:
    """Where a layout has the blob with this (valid) digest."""
    return "blobs/" + digest.replace(":", "/")


def _label(entry: Descriptor) -> str:
    return entry.annotations.get(REF_NAME) or entry.annotations.get(FULL_NAME) or ""


def _is_called(entry: Descriptor, tag: str) -> bool:
    names = {entry.annotations.get(REF_NAME), entry.annotations.get(FULL_NAME)} - {None}
    if tag in names or tag == entry.digest:
        return True
    try:
        return str(Reference.parse(tag)) in names
    except ImageNameError:
        return False
