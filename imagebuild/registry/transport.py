"""One HTTP exchange: connections, TLS, proxies, redirects, time limits.  No credentials of its own, no second tries.

Redirects are followed here rather than by requests, because the rule is stricter: an Authorization header goes to the
origin it was made for and nowhere else, and a step from https to http is refused.
"""

from __future__ import annotations

import functools
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.exceptions import HTTPError, InsecureRequestWarning

from imagebuild.errors import RegistryError
from imagebuild.registry.body import discard
from imagebuild.registry.origin import REDIRECTS, REDIRECTS_KEEPING_METHOD, Origin, follow, proxies_for
from imagebuild.registry.settings import RegistrySettings
from imagebuild.registry.transient import TransientError, root_cause

USER_AGENT = "vch-imagebuild/0.1"
# Registries redirect once, to their blob storage.  A chain longer than this is a loop.
MAX_REDIRECTS = 5
# A body is sent in blocks of this size.  Each has the connect timeout to leave, so a larger one would shut out slow
# lines, and http.client's own 16 KiB costs four times the system calls.
_SEND_BLOCK = 64 << 10
# What OpenSSL says when the first bytes from the other side are no TLS record.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"})
_STEP = "connect"

Body = bytes | Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Exchange:
    """One request.  A ``body`` that is a callable opens a fresh stream of ``length`` bytes for each try.

    ``patience_s`` is the longest silence before and within the answer; None for the settings' stall timeout.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str = field(default="", repr=False)
    body: Body | None = field(default=None, repr=False)
    length: int = 0
    patience_s: float | None = None


class _Adapter(HTTPAdapter):
    """Keeps connections, with a TLS context of our choice instead of the bundle that requests brings."""

    def __init__(self, context: ssl.SSLContext, connections: int) -> None:
        self._context = context
        super().__init__(pool_maxsize=connections)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        super().init_poolmanager(
            connections, maxsize, block, ssl_context=self._context, blocksize=_SEND_BLOCK, **pool_kwargs
        )

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, **proxy_kwargs)

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[Any, Any]:
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {"ssl_context": self._context, "cert_reqs": self._context.verify_mode}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Leave the pool as the context has it: requests would load 140 authorities anew for each connection."""


class Transport:
    """Sends exchanges.  Safe to use from several threads: all that is shared are urllib3's pools."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._session = requests.Session()
        self._mount("http://", _system_context())  # for proxies that speak TLS
        self._mount("https://", _system_context())
        for registry, path in settings.ca_files.items():
            self._mount(f"https://{registry}/", _trusting_context(path))
        if settings.insecure:
            urllib3.disable_warnings(InsecureRequestWarning)  # the user has said so already
        for registry in settings.insecure - settings.ca_files.keys():
            self._mount(f"https://{registry}/", _blind_context())

    def _mount(self, prefix: str, context: ssl.SSLContext) -> None:
        self._session.mount(prefix, _Adapter(context, self._settings.connections))

    def close(self) -> None:
        """Close every idle connection."""
        self._session.close()

    def send(self, exchange: Exchange) -> requests.Response:
        """The answer, its body unread, after any redirects.

        Raises TransientError if another try may help, RegistryError if not.
        """
        url, authorization = exchange.url, exchange.authorization
        home = Origin.of(url)
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send_once(exchange, url, authorization)
            location = response.headers.get("Location")
            if response.status_code not in REDIRECTS or not location:
                return response
            discard(response)
            url = follow(url, location)
            self._check_redirect(exchange, response.status_code, url)
            if Origin.of(url) != home:
                # For good: a stranger who redirects back home must not aim our credentials at a path of his choice.
                authorization = ""
        raise RegistryError(_STEP, str(home), f"more than {MAX_REDIRECTS} redirects", "the registry is misconfigured")

    def _check_redirect(self, exchange: Exchange, status: int, url: str) -> None:
        """Refuse a redirect that would change the method, or carry a body that is in memory (a login's form) away."""
        if exchange.method in ("GET", "HEAD"):
            return
        leaves = Origin.of(url) != Origin.of(exchange.url)
        if status not in REDIRECTS_KEEPING_METHOD or (leaves and isinstance(exchange.body, bytes)):
            cause = f"{exchange.method} is redirected to {Origin.of(url)} with {status}"
            remedy = "use the name that the registry redirects to"
            raise RegistryError(_STEP, str(Origin.of(exchange.url)), cause, remedy)

    def _send_once(self, exchange: Exchange, url: str, authorization: str) -> requests.Response:
        # No Accept-Encoding but identity: what is hashed must be what was stored.
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"} | dict(exchange.headers)
        if authorization:
            headers["Authorization"] = authorization
        timeout = (self._settings.connect_timeout_s, exchange.patience_s or self._settings.stall_timeout_s)
        body = exchange.body
        stream = body() if callable(body) else None
        try:
            request = requests.Request(exchange.method, url, headers, data=body if stream is None else None).prepare()
            if stream is not None:
                request.body, request.headers["Content-Length"] = stream, str(exchange.length)  # type: ignore[assignment]
            # The adapter directly: Session.send would read a redirect's body whole, whatever its size.
            adapter = self._session.get_adapter(url)
            return adapter.send(request, stream=True, timeout=timeout, verify=True, proxies=proxies_for(url))
        except (requests.RequestException, HTTPError, OSError) as error:
            raise _explain(error, url) from error
        finally:
            if stream is not None:
                stream.close()


@functools.cache
def _system_context() -> ssl.SSLContext:
    """The system's authorities, or requests' own where it has none.  Loading them takes 20 ms: once is enough."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not paths.cafile and not paths.capath:
        context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    return context


def _trusting_context(extra: Path) -> ssl.SSLContext:
    """The system's authorities and those in a PEM file."""
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(extra)
    except OSError as error:  # ssl.SSLError too: a file that is no PEM
        raise RegistryError("read certificate authorities", str(extra), str(error), "expected a PEM file") from error
    return context


def _blind_context() -> ssl.SSLContext:
    """TLS without any check, for registries that the user called insecure."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _explain(error: BaseException, url: str) -> Exception:
    """What an exchange's failure means: a RegistryError if it is final, a TransientError if not."""
    host = urlsplit(url).netloc
    root = root_cause(error)
    final = _final(root, host)
    if final is None and isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader)):
        final = str(root), "the registry or the settings are misconfigured"
    if final is not None:
        return RegistryError(_STEP, host, *final)
    if isinstance(error, requests.Timeout) or isinstance(root, TimeoutError):
        return TransientError(f"no answer from {host} in time")
    if isinstance(root, ConnectionRefusedError):
        return TransientError(f"nothing listens at {host}, or at the proxy on the way there")
    detail = getattr(root, "strerror", None) or str(root) or type(root).__name__
    return TransientError(f"the connection to {host} broke: {ascii(detail[:200])[1:-1]}")


def _final(root: BaseException, host: str) -> tuple[str, str] | None:
    """Cause and remedy of a failure that will not pass by itself, else None."""
    table = f'below [registry."{host}"] in the settings'
    if isinstance(root, ssl.SSLCertVerificationError):
        cause = f"its certificate is not trusted: {root.verify_message or root}"
        return cause, f"set ca_file, or insecure = true, {table}"
    if isinstance(root, ssl.SSLError) and root.reason in _NOT_TLS:
        return "it does not speak TLS", f"set insecure = true {table} to use plain HTTP"
    if isinstance(root, socket.gaierror) and root.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
        return "no such host", "check the image name, the DNS and the proxy settings"
    return None
