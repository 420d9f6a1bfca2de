"""Where a registry is: its servers in order of preference, and whether they speak TLS."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from imagebuild.errors import RegistryError
from imagebuild.oci.reference import DOCKER_HUB, is_loopback
from imagebuild.registry.body import discard
from imagebuild.registry.origin import Origin
from imagebuild.registry.settings import RegistrySettings
from imagebuild.registry.transient import TransientError
from imagebuild.registry.transport import Exchange, Transport

# Docker Hub's registry is not at the host its name says.
_REAL_HOSTS = {DOCKER_HUB: "registry-1.docker.io"}


@dataclass(frozen=True)
class Endpoint:
    """A server to ask.  ``base`` is ``scheme://host[:port]``; ``registry`` is the name its credentials go by."""

    registry: str
    base: str
    prefix: str = ""
    is_mirror: bool = False

    def url(self, repository: str, tail: str) -> str:
        """The URL of something in a repository (distribution-spec, "Endpoints")."""
        return f"{self.base}/v2/{self.prefix}{repository}/{tail}"

    @property
    def origin(self) -> Origin:
        """Whom credentials may be sent to."""
        return Origin.of(self.base)


@dataclass(frozen=True)
class Candidate:
    """An endpoint whose scheme may still have to be found out: the first of ``schemes`` that it speaks."""

    registry: str
    host: str
    schemes: tuple[str, ...]
    prefix: str = ""
    is_mirror: bool = False


def home(registry: str, settings: RegistrySettings) -> Candidate:
    """The registry itself, where a push goes."""
    return Candidate(registry, _REAL_HOSTS.get(registry, registry), _schemes(registry, settings))


def candidates(registry: str, settings: RegistrySettings) -> tuple[Candidate, ...]:
    """The servers that may hold a registry's content: its mirrors, and last itself."""
    mirrors = settings.mirrors.get(registry, ())
    return (*(_mirror(text, settings) for text in mirrors), home(registry, settings))


def _schemes(host: str, settings: RegistrySettings) -> tuple[str, ...]:
    """The schemes to try, in order.

    Plain HTTP only for this machine and where the user said insecure.  A loopback registry is asked in plain first,
    since a TLS greeting can leave a simple HTTP server waiting for the end of a line for ever.
    """
    if host in settings.ca_files:
        return ("https",)
    if is_loopback(host):
        return ("http", "https")
    return ("https", "http") if host in settings.insecure else ("https",)


def _mirror(text: str, settings: RegistrySettings) -> Candidate:
    scheme, separator, rest = text.rpartition("://")
    host, _, prefix = rest.partition("/")
    if not host or (separator and scheme not in ("http", "https")):
        raise RegistryError("read settings", text, "not a mirror", "write [http[s]://]host[:port][/prefix]")
    prefix = prefix.strip("/")
    schemes = (scheme,) if separator else _schemes(host, settings)
    return Candidate(host, host, schemes, f"{prefix}/" if prefix else "", is_mirror=True)


class Locator:
    """Finds out, once for each server, which scheme it speaks.  Safe to use from several threads."""

    def __init__(self, transport: Transport, settings: RegistrySettings) -> None:
        self._transport, self._settings = transport, settings
        self._known: dict[Candidate, Endpoint] = {}
        self._lock = threading.Lock()

    def locate(self, candidate: Candidate) -> Endpoint:
        """The endpoint behind a candidate."""
        with self._lock:
            if candidate not in self._known:
                scheme = self._probe(candidate) if len(candidate.schemes) > 1 else candidate.schemes[0]
                self._known[candidate] = Endpoint(
                    candidate.registry, f"{scheme}://{candidate.host}", candidate.prefix, candidate.is_mirror
                )
            return self._known[candidate]

    def _probe(self, candidate: Candidate) -> str:
        """The first scheme that gets an answer, or the first at all: the real request will then say what is wrong."""
        for scheme in candidate.schemes:
            try:
                response = self._transport.send(Exchange("GET", f"{scheme}://{candidate.host}/v2/"))
            except (RegistryError, TransientError):
                continue
            discard(response)
            # 400 is what a TLS server answers to plain HTTP, if it answers.
            return "https" if response.status_code == 400 else scheme
        return candidate.schemes[0]
