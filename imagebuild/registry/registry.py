"""The registry client: what a pull and a push ask of a registry, as one object.

    with Registry() as registry:
        image = registry.resolve(Reference.parse("busybox"), Platform.host())
        for layer in image.manifest.layers:
            with registry.blob(image.reference, layer) as stream:
                for piece in stream: ...

A ``Registry`` may be used from several threads, so that layers come down side by side.  Every manifest and config that
it returns has been verified against its digest; a blob's digest is for its consumer to verify, who reads it anyway.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TypeVar

from imagebuild.digest import digest_of, digest_problem, verify_bytes
from imagebuild.errors import ManifestError, NotFoundError, RegistryError
from imagebuild.jsoncheck import MAX_DOCUMENT, load_document
from imagebuild.oci.imageconfig import ImageConfig, check_pair, check_platform, parse_config
from imagebuild.oci.manifest import ACCEPT, Descriptor, Index, Manifest, parse_manifest
from imagebuild.oci.platforms import Platform
from imagebuild.oci.reference import Reference
from imagebuild.registry.auth import scope_for
from imagebuild.registry.blobstream import BlobStream
from imagebuild.registry.client import Ask, Client
from imagebuild.registry.credentials import CredentialFiles, Credentials
from imagebuild.registry.endpoint import Endpoint, candidates, home
from imagebuild.registry.origin import Origin, follow
from imagebuild.registry.retry import Retrier
from imagebuild.registry.settings import RegistrySettings
from imagebuild.registry.upload import Pushed, Source, Upload, push_manifest

# An index may list indexes (image-index.md); one level occurs, and more is a loop or an attack.
_MAX_INDEX_DEPTH = 3
_TAGS_PER_PAGE = 1000
_MAX_TAGS = 100_000
_NEXT_PAGE = re.compile(r'<([^>]*)>\s*;(?:[^,]*;)?\s*rel="?next"?', re.IGNORECASE)

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class ResolvedImage:
    """One image for one platform, verified.  ``index_digest`` is that of the index it was chosen from, if any."""

    reference: Reference
    digest: str
    manifest: Manifest
    config: ImageConfig
    index_digest: str | None


class Registry:
    """A client for all registries that the settings and credentials let us reach."""

    def __init__(
        self,
        settings: RegistrySettings | None = None,
        credentials: Credentials | None = None,
        retrier: Retrier | None = None,
    ) -> None:
        self._client = Client(settings or RegistrySettings(), credentials or CredentialFiles.of_user(), retrier)

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()

    # --- pulling -----------------------------------------------------------------------------------------------------

    def resolve(self, reference: Reference, platform: Platform | None = None) -> ResolvedImage:
        """Find the image for a platform (this host's if None).

        Raises NotFoundError, AuthError, RegistryError, and ManifestError for what is malformed, fails its digest or is
        not for the platform.
        """
        wanted = platform or Platform.host()
        found = self.manifest(reference)
        digest = reference.digest or digest_of(found.raw)
        index_digest = digest if isinstance(found, Index) else None
        for _ in range(_MAX_INDEX_DEPTH):
            if isinstance(found, Manifest):
                break
            entry = found.choose(wanted, reference.familiar())
            digest = entry.digest
            found = self.manifest(reference.with_digest(digest), entry)
        if not isinstance(found, Manifest):
            raise ManifestError("choose platform", reference.familiar(), "its indexes are nested too deeply")
        config = self.config(reference, found)
        check_pair(found, config, reference.familiar())
        check_platform(config, wanted, reference.familiar())
        return ResolvedImage(reference, digest, found, config, index_digest)

    def manifest(self, reference: Reference, expected: Descriptor | None = None) -> Manifest | Index:
        """The manifest or index of a reference, verified; ``expected`` is the index entry that led to it, if any."""
        return self._from_any(reference, lambda endpoint: self._manifest_from(endpoint, reference, expected))

    def config(self, reference: Reference, manifest: Manifest) -> ImageConfig:
        """The config of a manifest, verified."""
        descriptor = manifest.config
        if descriptor.size > MAX_DOCUMENT:
            cause = f"{descriptor.size} bytes, and {MAX_DOCUMENT} are allowed"
            raise ManifestError("download config", descriptor.digest, cause)
        with self.blob(reference, descriptor) as stream:
            raw = b"".join(stream)
        verify_bytes(raw, descriptor.digest, "config")
        return parse_config(raw, descriptor.digest)

    def blob(self, reference: Reference, descriptor: Descriptor) -> BlobStream:
        """Stream a blob: exactly ``descriptor.size`` bytes, or RegistryError.  The digest is the caller's to verify."""
        return BlobStream(self._client, reference, descriptor)

    def digest(self, reference: Reference) -> str:
        """What the reference points to now, without fetching it (HEAD); RegistryError where a registry will not say."""
        return self._from_any(reference, lambda endpoint: self._digest_from(endpoint, reference))

    def has_blob(self, reference: Reference, descriptor: Descriptor) -> bool:
        """Whether the registry itself has a blob in the reference's repository."""
        endpoint = self._home(reference)
        ask = _ask(endpoint, reference, "look for blob", descriptor.digest, f"blobs/{descriptor.digest}")
        try:
            self._client.ask(replace(ask, method="HEAD"))
        except NotFoundError:
            return False
        return True

    def tags(self, reference: Reference) -> tuple[str, ...]:
        """All tags of the reference's repository, sorted: the spec wants that of registries, and not all comply."""
        return self._from_any(reference, lambda endpoint: self._tags_from(endpoint, reference))

    # --- pushing -----------------------------------------------------------------------------------------------------

    def push_blob(self, reference: Reference, descriptor: Descriptor, source: Source, mount_from: str = "") -> Pushed:
        """Bring a blob to the reference's repository.

        ``source`` opens the content anew for each try.  ``mount_from`` is a repository of the same registry that may
        have the blob, which is then linked and not sent.
        """
        endpoint = self._home(reference)
        return Upload(self._client, endpoint, reference.repository, descriptor, source).run(mount_from)

    def push_manifest(self, reference: Reference, raw: bytes, media_type: str) -> str:
        """Store a manifest or index under the reference's tag, or by digest if it has none; its digest.

        Its blobs, or an index's manifests, must be there before.
        """
        if reference.digest:
            verify_bytes(raw, reference.digest, "manifest")
        endpoint = self._home(reference)
        return push_manifest(self._client, endpoint, reference, raw, media_type)

    # --- one endpoint ------------------------------------------------------------------------------------------------

    def _from_any(self, reference: Reference, ask: Callable[[Endpoint], ResultT]) -> ResultT:
        """The answer of the first endpoint that has one: a mirror's failure is not the user's, the registry's is."""
        locate = self._client.locator.locate
        *mirrors, own = candidates(reference.registry, self._client.settings)
        for mirror in mirrors:
            try:
                return ask(locate(mirror))
            except (RegistryError, ManifestError):
                continue
        return ask(locate(own))

    def _home(self, reference: Reference) -> Endpoint:
        return self._client.locator.locate(home(reference.registry, self._client.settings))

    def _manifest_from(self, endpoint: Endpoint, reference: Reference, expected: Descriptor | None) -> Manifest | Index:
        subject = reference.familiar()
        ask = _ask(endpoint, reference, "fetch manifest", subject, f"manifests/{reference.target}")
        limit = expected.size if expected and expected.size < MAX_DOCUMENT else MAX_DOCUMENT
        response, raw = self._client.fetch(replace(ask, headers={"Accept": ACCEPT}), limit)
        stated = response.headers.get("Docker-Content-Digest", "")
        if reference.digest:
            verify_bytes(raw, reference.digest, "manifest")
        elif stated and not digest_problem(stated):
            verify_bytes(raw, stated, "manifest")
        media_type = response.headers.get("Content-Type", "") or (expected.media_type if expected else "")
        return parse_manifest(raw, media_type, reference.digest or "")

    def _digest_from(self, endpoint: Endpoint, reference: Reference) -> str:
        subject = reference.familiar()
        ask = _ask(endpoint, reference, "look up manifest", subject, f"manifests/{reference.target}")
        response = self._client.ask(replace(ask, method="HEAD", headers={"Accept": ACCEPT}))
        digest = response.headers.get("Docker-Content-Digest", "")
        if problem := digest_problem(digest):
            raise RegistryError("look up manifest", subject, f"the registry names no digest: {problem}")
        return digest

    def _tags_from(self, endpoint: Endpoint, reference: Reference) -> tuple[str, ...]:
        ask = _ask(endpoint, reference, "list tags", reference.name, f"tags/list?n={_TAGS_PER_PAGE}")
        tags: dict[str, None] = {}
        while True:
            response, raw = self._client.fetch(ask, MAX_DOCUMENT)
            page = load_document(raw, f"tags of {reference.name}").texts("tags", _MAX_TAGS)
            known = len(tags)
            tags |= dict.fromkeys(page)
            following = next_page(response.headers.get("Link", ""))
            # A page that brings nothing new ends a loop that a faulty registry would send us into.
            if not following or len(tags) == known or len(tags) > _MAX_TAGS:
                return tuple(sorted(tags))
            url = follow(ask.target, following)
            if Origin.of(url) != endpoint.origin:
                raise RegistryError("list tags", reference.name, f"its next page is at another host, {Origin.of(url)}")
            ask = replace(ask, url=url)


def next_page(link: str) -> str:
    """The target of a Link header's ``rel=next`` (RFC 8288), empty if there is none."""
    found = _NEXT_PAGE.search(link)
    return found[1] if found else ""


def _ask(endpoint: Endpoint, reference: Reference, step: str, subject: str, tail: str) -> Ask:
    """Something to read from the reference's repository."""
    scope = scope_for("pull", endpoint.prefix + reference.repository)
    return Ask(step, subject, endpoint, reference.repository, scope, tail=tail)
