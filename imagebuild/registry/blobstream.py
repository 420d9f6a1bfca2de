"""Streaming a blob from a registry, picking up after a break where it stopped.

The consumer hashes what it gets, from the first byte to the last, so a resumed download is verified as a whole; here
only the size is held to.  A server may answer a Range request with the whole blob (RFC 9110, 14.2): then what was
already handed on is read again and thrown away.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from types import TracebackType

import requests

from imagebuild.errors import RegistryError
from imagebuild.oci.manifest import Descriptor
from imagebuild.oci.reference import Reference
from imagebuild.registry.auth import scope_for
from imagebuild.registry.body import pieces
from imagebuild.registry.client import Ask, Client
from imagebuild.registry.endpoint import Endpoint, candidates
from imagebuild.registry.transient import TransientError

# Bytes after which a download counts as alive again, and its failures are forgiven.  Far less, and a server that
# breaks off after every byte would keep us busy for ever.
_PROGRESS = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_STEP = "download blob"


class BlobStream:
    """The bytes of one blob, as an iterator of pieces of mostly 256 KiB to 512 KiB, and a context manager.

    It yields exactly the descriptor's number of bytes or raises RegistryError; the digest is the consumer's to check.
    For use from one thread.  The registry's mirrors are tried first, and a download may begin at one and end at
    another.
    """

    def __init__(self, client: Client, reference: Reference, descriptor: Descriptor) -> None:
        self._client, self._reference, self._descriptor = client, reference, descriptor
        self._response: requests.Response | None = None
        self._pieces = self._run()
        self.delivered = 0  # bytes handed on so far

    def __enter__(self) -> BlobStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        """Drop the connection if the blob was not read to its end."""
        self._pieces.close()
        self._drop()

    def _drop(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()

    def _run(self) -> Generator[bytes, None, None]:
        *mirrors, own = candidates(self._reference.registry, self._client.settings)
        for mirror in mirrors:
            try:
                yield from self._from(self._client.locator.locate(mirror))
                return
            except RegistryError:
                self._drop()  # a mirror that cannot: the next one continues at the same byte
        yield from self._from(self._client.locator.locate(own))

    def _from(self, endpoint: Endpoint) -> Generator[bytes, None, None]:
        failures, progress = 0, self.delivered
        while self.delivered < self._descriptor.size or self.delivered == 0:
            try:
                yield from self._attempt(endpoint)
                return
            except TransientError as error:
                self._drop()
                if self.delivered - progress >= _PROGRESS:
                    failures, progress = 0, self.delivered
                failures += 1
                cause = f"{error}, after {self.delivered} of {self._descriptor.size} bytes"
                self._client.retrier.wait(_STEP, self._descriptor.digest, cause, failures)

    def _attempt(self, endpoint: Endpoint) -> Generator[bytes, None, None]:
        """One request from where we are to the end.  Raises TransientError if it breaks."""
        size, start = self._descriptor.size, self.delivered
        ask = Ask(
            step=_STEP,
            subject=self._descriptor.digest,
            endpoint=endpoint,
            repository=self._reference.repository,
            scope=scope_for("pull", endpoint.prefix + self._reference.repository),
            tail=f"blobs/{self._descriptor.digest}",
            headers={"Range": f"bytes={start}-"} if start else {},
        )
        response = self._response = self._client.send(ask, (200, 206) if start else (200,))
        begins = self._first_byte(response, start)
        skip = start - begins
        # One byte more than there should be is asked for, so that a longer blob is noticed.
        for piece in pieces(response, size - begins + 1, self._client.settings.stall_timeout_s):
            fresh = piece[skip:] if skip else piece
            skip -= len(piece) - len(fresh)
            if self.delivered + len(fresh) > size:
                raise self._wrong("it goes on")
            if fresh:
                self.delivered += len(fresh)
                yield fresh
        if self.delivered < size:
            raise TransientError("the answer ended early")
        self._drop()

    def _first_byte(self, response: requests.Response, start: int) -> int:
        """The blob's byte that the answer begins with; RegistryError if it cannot be the blob that was promised."""
        size = self._descriptor.size
        begins = 0
        if response.status_code == 206:
            stated = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if not stated or int(stated[1]) != start or stated[3] not in ("*", str(size)):
                raise self._wrong(f"asked to go on at byte {start}, the server sends another range")
            begins = start
        length = response.headers.get("Content-Length", "")
        # A shorter one is refused as well: that is another blob, not a broken line.
        if length.isascii() and length.isdigit() and int(length[:20]) != size - begins:
            raise self._wrong(f"the server announces {length[:20]} bytes from byte {begins} on")
        return begins

    def _wrong(self, cause: str) -> RegistryError:
        return RegistryError(
            _STEP,
            self._descriptor.digest,
            f"the manifest promises {self._descriptor.size} bytes, and {cause}",
            "the registry's copy is damaged: push the image again",
        )
