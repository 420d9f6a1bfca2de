"""Where a request may go, and what may go along: origins, redirects and proxies, decided by pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import requests

from imagebuild.errors import RegistryError
from imagebuild.oci.reference import is_loopback

_DEFAULT_PORTS = {"http": 80, "https": 443}
# 301-303 ask for a GET and are followed for reading only; 307 and 308 keep the method (RFC 9110, 15.4).
REDIRECTS = frozenset({301, 302, 303, 307, 308})
REDIRECTS_KEEPING_METHOD = frozenset({307, 308})


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port: what has to be equal for credentials to be sent along (RFC 6454)."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """The origin of an absolute http(s) URL; RegistryError for anything else."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise _bad_url(url, str(error)) from error
        if parts.scheme not in _DEFAULT_PORTS or not host or parts.username is not None:
            raise _bad_url(url, "not a plain http or https URL")
        return cls(parts.scheme, host.lower(), port or _DEFAULT_PORTS[parts.scheme])

    @property
    def is_secure(self) -> bool:
        """Whether nobody on the way can listen: TLS, or a connection that never leaves this machine."""
        return self.scheme == "https" or self.is_local

    @property
    def is_local(self) -> bool:
        """Whether this is a loopback address of this machine."""
        return is_loopback(self._bracketed)

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        return f"{self.scheme}://{self._bracketed}:{self.port}"


def _bad_url(url: str, cause: str) -> RegistryError:
    return RegistryError("follow the registry's answer", ascii(url[:200])[1:-1], cause, "the registry is misconfigured")


def follow(source: str, location: str) -> str:
    """The absolute URL that ``location``, found in an answer from ``source``, leads to.

    Raises RegistryError for other schemes, and for a step from TLS down to plain HTTP.
    """
    target = urljoin(source, location)
    if Origin.of(source).scheme == "https" and Origin.of(target).scheme == "http":
        raise RegistryError(
            "follow the registry's answer",
            ascii(target[:200])[1:-1],
            f"{Origin.of(source)} leads from https to http",
            "a proxy before the registry must pass X-Forwarded-Proto, or the registry must be told its own URL",
        )
    return target


def proxies_for(
    url: str, lookup: Callable[[str], dict[str, str]] = requests.utils.get_environ_proxies
) -> dict[str, str]:
    """The proxies that the environment names for ``url``; none for this machine itself, as with Docker and curl."""
    return {} if Origin.of(url).is_local else lookup(url)
