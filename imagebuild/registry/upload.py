"""Sending blobs and manifests to a registry (distribution-spec, "Push")."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import IO
from urllib.parse import quote, urlencode

import requests

from imagebuild.digest import digest_of
from imagebuild.errors import AuthError, NotFoundError, RegistryError
from imagebuild.oci.manifest import Descriptor
from imagebuild.oci.reference import Reference
from imagebuild.registry.auth import scope_for
from imagebuild.registry.client import Ask, Client
from imagebuild.registry.endpoint import Endpoint
from imagebuild.registry.origin import follow
from imagebuild.registry.transient import TransientError

# A registry may hash, copy or commit a whole blob before it answers its last request.
_COMMIT_PATIENCE_S = 300.0
_UPLOADED_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})")

Source = Callable[[], IO[bytes]]


class Pushed(Enum):
    """How a blob came to be in the repository."""

    PRESENT = "present"
    MOUNTED = "mounted"
    UPLOADED = "uploaded"


@dataclass(frozen=True)
class Upload:
    """One blob on its way.  ``source`` opens the content anew, for each try; it must be seekable for chunks."""

    client: Client
    endpoint: Endpoint
    repository: str
    descriptor: Descriptor
    source: Source

    def run(self, mount_from: str = "") -> Pushed:
        """Bring the blob to the repository in the cheapest way: it is there, or elsewhere in the registry, or sent.

        Raises RegistryError.
        """
        if self._is_present():
            return Pushed.PRESENT
        location = self._mount(mount_from) if mount_from else None
        if location == "":
            return Pushed.MOUNTED
        failures = 0
        while True:
            location = location or self._begin()
            try:
                self._send(location)
            except TransientError as error:
                failures += 1
                self.client.retrier.wait("push blob", self.descriptor.digest, str(error), failures)
                location = None  # what arrived of a broken request is unknown: begin afresh
            else:
                return Pushed.UPLOADED

    def _ask(self, method: str, **more: object) -> Ask:
        ask = Ask(
            step="push blob",
            subject=self.descriptor.digest,
            endpoint=self.endpoint,
            repository=self.repository,
            scope=scope_for("pull,push", self.repository),
            method=method,
        )
        return replace(ask, **more)  # type: ignore[arg-type]

    def _is_present(self) -> bool:
        try:
            self.client.ask(self._ask("HEAD", tail=f"blobs/{self.descriptor.digest}"))
        except NotFoundError:
            return False
        return True

    def _mount(self, mount_from: str) -> str | None:
        """Ask for the blob out of another repository: "" if that worked, else where to upload, or None."""
        query = urlencode({"mount": self.descriptor.digest, "from": mount_from})
        scope = f"{scope_for('pull,push', self.repository)} {scope_for('pull', mount_from)}"
        ask = self._ask("POST", tail=f"blobs/uploads/?{query}", scope=scope)
        try:
            response = self.client.ask(ask, (201, 202))
        except AuthError:
            return None  # the other repository is not ours to read; sending the blob still may be allowed
        return "" if response.status_code == 201 else self._location(response)

    def _begin(self) -> str:
        response = self.client.ask(self._ask("POST", tail="blobs/uploads/"), (202,))
        return self._location(response)

    def _location(self, response: requests.Response) -> str:
        location = response.headers.get("Location")
        if not location:
            raise RegistryError(
                "push blob", self.descriptor.digest, "the registry does not say where to upload", "it is misconfigured"
            )
        return follow(str(response.url), location)

    def _send(self, location: str) -> None:
        """Upload everything and commit.  Raises TransientError if it broke."""
        if self.client.settings.push_chunk > 0:
            location = self._send_chunks(location)
            body: Source | bytes = b""
        else:
            body = self.source
        ask = self._ask(
            "PUT",
            url=f"{location}{'&' if '?' in location else '?'}digest={quote(self.descriptor.digest)}",
            headers={"Content-Type": "application/octet-stream"},
            body=body,
            length=self.descriptor.size,
            patience_s=_COMMIT_PATIENCE_S,
        )
        self.client.send_once(ask, (201, 204))

    def _send_chunks(self, location: str) -> str:
        """Upload piece by piece, asking after a break how far the registry got; where to commit."""
        failures, offset = 0, 0
        with self.source() as stream:
            while offset < self.descriptor.size:
                stream.seek(offset)
                chunk = stream.read(min(self.client.settings.push_chunk, self.descriptor.size - offset))
                if not chunk:
                    raise RegistryError("push blob", self.descriptor.digest, "the local content is too short")
                try:
                    response = self.client.send_once(self._chunk(location, offset, chunk), (202, 204))
                    failures, offset = 0, offset + len(chunk)
                except TransientError as error:
                    failures += 1
                    self.client.retrier.wait("push blob", self.descriptor.digest, str(error), failures)
                    response = self._status(location)
                    offset = self._arrived(response)
                location = self._location(response)
        return location

    def _chunk(self, location: str, offset: int, chunk: bytes) -> Ask:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{offset}-{offset + len(chunk) - 1}",  # the spec's own form, without "bytes "
        }
        return self._ask("PATCH", url=location, headers=headers, body=chunk, patience_s=_COMMIT_PATIENCE_S)

    def _status(self, location: str) -> requests.Response:
        """Ask how far an upload got.  Raises TransientError if the registry has forgotten it: begin afresh."""
        try:
            return self.client.ask(self._ask("GET", url=location), (204,))
        except NotFoundError as error:
            raise TransientError("the registry lost the upload") from error

    def _arrived(self, response: requests.Response) -> int:
        """Bytes that the registry has.  ``0-0`` is said both of one byte and of none; a chunk is larger than one."""
        stated = _UPLOADED_RANGE.fullmatch(response.headers.get("Range", "").strip())
        last = int(stated[1]) if stated else 0
        return min(last + 1, self.descriptor.size) if last else 0


def push_manifest(client: Client, endpoint: Endpoint, reference: Reference, raw: bytes, media_type: str) -> str:
    """Store a manifest or index under the reference's tag, or its digest if it has no tag; the digest.

    Raises RegistryError.
    """
    digest = digest_of(raw, (reference.digest or "sha256").partition(":")[0])
    ask = Ask(
        step="push manifest",
        subject=reference.familiar(),
        endpoint=endpoint,
        repository=reference.repository,
        scope=scope_for("pull,push", reference.repository),
        method="PUT",
        tail=f"manifests/{reference.tag or reference.target}",
        headers={"Content-Type": media_type},
        body=raw,
        patience_s=_COMMIT_PATIENCE_S,
    )
    response = client.ask(ask, (201, 202))
    stored = response.headers.get("Docker-Content-Digest", digest)
    # A registry may name the same bytes by another algorithm, which says nothing against them.
    if stored != digest and stored.partition(":")[0] == digest.partition(":")[0]:
        raise RegistryError(ask.step, ask.subject, f"the registry stored {stored} instead of {digest}")
    return digest
