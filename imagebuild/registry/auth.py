"""Answering challenges: Basic, and Bearer tokens fetched, kept until they expire, and renewed.

Sources: distribution-spec's "Token Authentication" and "OAuth2 Token Authentication" pages, RFC 6750, RFC 7617.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests

from imagebuild.errors import AuthError, RegistryError
from imagebuild.registry.body import discard, read_limited
from imagebuild.registry.challenge import Challenge, parse_challenges
from imagebuild.registry.credentials import Credential, Credentials
from imagebuild.registry.endpoint import Endpoint
from imagebuild.registry.origin import Origin
from imagebuild.registry.retry import Retrier
from imagebuild.registry.settings import RegistrySettings
from imagebuild.registry.transport import Exchange, Transport

CLIENT_ID = "vch"
# A token's life when the server does not say, and the least that it is taken for (token specification).
DEFAULT_LIFE_S = 60.0
# A token is renewed while it has this share of its life left, so that it does not expire on the way.
_RESERVE = 0.1
_LONGEST_LIFE_S = 86400.0 * 365  # beyond it the number is a mistake
_MAX_TOKEN_ANSWER = 1 << 20
# What may stand in a header's value without ending it: visible ASCII.
_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")

_STEP = "log in"


@dataclass
class _Slot:
    """The Authorization header in use for one registry and scope.  ``lock`` keeps threads from fetching it twice."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    header: str = ""
    expires: float = 0.0  # on the monotonic clock


class Authenticator:
    """Knows what to send as Authorization, to whom, for what.  Safe to use from several threads."""

    def __init__(
        self, transport: Transport, retrier: Retrier, credentials: Credentials, settings: RegistrySettings
    ) -> None:
        self._transport, self._retrier, self._credentials = transport, retrier, credentials
        self._settings = settings
        self._slots: dict[tuple[Origin, str, str], _Slot] = {}

    def header(self, endpoint: Endpoint, repository: str, scope: str) -> str:
        """The header that worked last for this scope and has not expired; empty to go without."""
        slot = self._slot(endpoint, repository, scope)
        return slot.header if time.monotonic() < slot.expires else ""

    def answer(self, endpoint: Endpoint, repository: str, scope: str, challenges: str, refused: str) -> str:
        """The header that answers a 401's WWW-Authenticate; ``refused`` is the one that was sent, or empty.

        Raises AuthError when there is nothing (else) to offer.
        """
        slot = self._slot(endpoint, repository, scope)
        with slot.lock:
            if slot.header != refused and time.monotonic() < slot.expires:
                return slot.header  # another thread was faster
            header, life = self._fresh(endpoint, repository, scope, parse_challenges(challenges))
            if header == refused:
                raise AuthError(
                    _STEP, endpoint.registry, "the credentials were refused", f"docker login {endpoint.registry}"
                )
            slot.header, slot.expires = header, time.monotonic() + life
            return header

    def refusal(self, endpoint: Endpoint, repository: str) -> AuthError:
        """The error for a registry that does not take the password it was given."""
        return _refusal(endpoint, self._credentials.find(endpoint.registry, endpoint.prefix + repository))

    def _slot(self, endpoint: Endpoint, repository: str, scope: str) -> _Slot:
        # Credentials may differ by repository, so a header is never shared between two.
        return self._slots.setdefault((endpoint.origin, endpoint.prefix + repository, scope), _Slot())

    def _fresh(
        self, endpoint: Endpoint, repository: str, scope: str, offered: tuple[Challenge, ...]
    ) -> tuple[str, float]:
        """A new header and the seconds it may be used for."""
        bearer = next((one for one in offered if one.scheme == "bearer" and one.parameters.get("realm")), None)
        basic = any(one.scheme == "basic" for one in offered)
        if bearer is None and not basic:
            schemes = ", ".join(sorted({one.scheme for one in offered})) or "nothing"
            cause = f"it offers {schemes} to authenticate with, and only Basic and Bearer are known"
            raise AuthError(_STEP, endpoint.registry, ascii(cause)[1:-1])
        credential = self._credentials.find(endpoint.registry, endpoint.prefix + repository)
        if bearer is not None:
            return self._bearer(endpoint, bearer, scope, credential)
        if credential is None or not credential.basic:
            cause = "it wants a user name and a password, and none are known"
            raise AuthError(_STEP, endpoint.registry, cause, f"docker login {endpoint.registry}")
        return credential.basic, float("inf")

    def _bearer(
        self, endpoint: Endpoint, challenge: Challenge, scope: str, credential: Credential | None
    ) -> tuple[str, float]:
        if credential is not None and credential.registry_token:
            return _bearer_header(credential.registry_token, endpoint), float("inf")
        realm = challenge.parameters["realm"]
        self._check_realm(endpoint, realm)
        request = TokenRequest(realm, challenge.parameters.get("service", ""), _scopes(scope, challenge))
        answer = self._fetch(endpoint, request, credential)
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str):
            raise AuthError(_STEP, Origin.of(realm).host, "its answer holds no token", "the registry is misconfigured")
        return _bearer_header(token, endpoint), _life(answer.get("expires_in"))

    def _check_realm(self, endpoint: Endpoint, realm: str) -> None:
        """A password may go over plain HTTP only where the user allowed that for this very host."""
        origin = Origin.of(realm)
        if origin.is_secure or urlsplit(realm).netloc.lower() in self._settings.insecure:
            return
        if endpoint.origin.scheme == "http" and endpoint.origin.host == origin.host:
            return
        raise AuthError(
            _STEP,
            endpoint.registry,
            f"it sends us to {origin} for a token, which is not encrypted",
            'if this is meant, set insecure = true for that host in the settings',
        )

    def _fetch(self, endpoint: Endpoint, request: TokenRequest, credential: Credential | None) -> dict[str, Any]:
        """Ask the token server, in the way that fits the credential."""
        if credential is not None and credential.identity_token:
            response = self._send(request.refresh(credential), endpoint)
        else:
            response = self._send(request.get(credential), endpoint)
            if response.status_code in (404, 405) and credential is not None:
                discard(response)  # a server that has the OAuth2 way only
                response = self._send(request.password(credential), endpoint)
        raw = read_limited(response, _MAX_TOKEN_ANSWER, self._settings.stall_timeout_s)
        if response.status_code in (400, 401, 403):
            raise _refusal(endpoint, credential)
        try:
            answer = json.loads(raw) if response.status_code == 200 and len(raw) <= _MAX_TOKEN_ANSWER else None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            cause = f"the token server answers {response.status_code} and no token"
            raise RegistryError(_STEP, Origin.of(request.realm).host, cause, "try again later")
        return answer

    def _send(self, exchange: Exchange, endpoint: Endpoint) -> requests.Response:
        return self._retrier.run(_STEP, endpoint.registry, lambda: self._transport.send(exchange))


@dataclass(frozen=True)
class TokenRequest:
    """What to ask a token server for; each method is one way to ask."""

    realm: str
    service: str
    scopes: tuple[str, ...]

    def get(self, credential: Credential | None) -> Exchange:
        """With a password or anonymously (token specification, "Requesting a Token")."""
        fields = [("service", self.service)] if self.service else []
        fields += [("scope", scope) for scope in self.scopes]
        if credential is not None and credential.username:
            fields.append(("account", credential.username))
        separator = "&" if "?" in self.realm else "?"
        url = f"{self.realm}{separator}{urlencode(fields)}"
        return Exchange("GET", url, authorization=credential.basic if credential else "")

    def refresh(self, credential: Credential) -> Exchange:
        """With an identity token (OAuth2, grant type refresh_token)."""
        return self._post(("grant_type", "refresh_token"), ("refresh_token", credential.identity_token))

    def password(self, credential: Credential) -> Exchange:
        """With a password, for servers that speak OAuth2 only (grant type password)."""
        return self._post(
            ("grant_type", "password"), ("username", credential.username), ("password", credential.password)
        )

    def _post(self, *grant: tuple[str, str]) -> Exchange:
        fields = [*grant, ("service", self.service), ("client_id", CLIENT_ID), ("scope", " ".join(self.scopes))]
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return Exchange("POST", self.realm, headers, body=urlencode(fields).encode())


def scope_for(actions: str, *repositories: str) -> str:
    """The scope of doing ``actions`` (``pull`` or ``pull,push``) in repositories, several separated by a space."""
    return " ".join(f"repository:{repository}:{actions}" for repository in repositories)


def _scopes(own: str, challenge: Challenge) -> tuple[str, ...]:
    """Our scopes and those the server names besides, each once."""
    return tuple(dict.fromkeys([*own.split(), *challenge.parameters.get("scope", "").split()]))


def _bearer_header(token: str, endpoint: Endpoint) -> str:
    if not _HEADER_SAFE.fullmatch(token):
        raise AuthError(_STEP, endpoint.registry, "the token holds characters that no header can")
    return f"Bearer {token}"


def _life(expires_in: object) -> float:
    """Seconds that a token may be used for, from the moment it arrived: the server's clock is not ours."""
    stated = expires_in if isinstance(expires_in, int | float) and 0 < expires_in < _LONGEST_LIFE_S else 0
    return max(stated, DEFAULT_LIFE_S) * (1 - _RESERVE)


def _refusal(endpoint: Endpoint, credential: Credential | None) -> AuthError:
    login = f"docker login {endpoint.registry}"
    if credential is None:
        return AuthError(_STEP, endpoint.registry, "it gives no token to anonymous users", login)
    return AuthError(_STEP, endpoint.registry, f"it refuses the credentials from {credential.source}", login)
