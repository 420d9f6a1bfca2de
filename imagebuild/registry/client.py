"""Asking a registry: one request with authentication, second tries, and errors that a person understands.

The layers below know one thing each (``transport`` an exchange, ``auth`` a challenge, ``retry`` a wait); this one puts
them together.  What is asked for, and what it means, is ``registry``'s and ``upload``'s business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import requests

from imagebuild.errors import AuthError, NotFoundError, RegistryError
from imagebuild.registry.auth import Authenticator
from imagebuild.registry.body import discard, read_limited
from imagebuild.registry.credentials import Credentials
from imagebuild.registry.endpoint import Endpoint, Locator
from imagebuild.registry.origin import Origin
from imagebuild.registry.retry import RETRYABLE_STATUS, Retrier, RetryPolicy
from imagebuild.registry.settings import RegistrySettings
from imagebuild.registry.transient import TransientError
from imagebuild.registry.transport import Body, Exchange, Transport

# An error's text is for a person to read; what is longer is a web page.
_MAX_ERROR_BODY = 64 << 10
_MAX_ERROR_TEXT = 300


@dataclass(frozen=True)
class Ask:
    """One thing asked of one endpoint.

    ``tail`` is what follows the repository in the URL; ``url`` overrides it where the registry chose the place (an
    upload's Location, a next page).  ``scope`` is the token scope.  ``step`` and ``subject`` are for errors.
    """

    step: str
    subject: str
    endpoint: Endpoint
    repository: str
    scope: str
    method: str = "GET"
    tail: str = ""
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = field(default=None, repr=False)
    length: int = 0
    patience_s: float | None = None

    @property
    def target(self) -> str:
        """The URL to ask."""
        return self.url or self.endpoint.url(self.repository, self.tail)


class Client:
    """Sends asks.  Safe to use from several threads."""

    def __init__(self, settings: RegistrySettings, credentials: Credentials, retrier: Retrier | None = None) -> None:
        self.settings = settings
        self.retrier = retrier or Retrier(RetryPolicy.of(settings))
        self._transport = Transport(settings)
        self.locator = Locator(self._transport, settings)
        self._authenticator = Authenticator(self._transport, self.retrier, credentials, settings)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def send(self, ask: Ask, accepted: tuple[int, ...] = (200,)) -> requests.Response:
        """The answer, body unread, if its status is one of ``accepted``; tried again where that may help.

        Raises AuthError, NotFoundError or RegistryError.
        """
        response = self.retrier.run(ask.step, ask.subject, lambda: self._authenticated(ask))
        return self._accept(ask, response, accepted)

    def ask(self, ask: Ask, accepted: tuple[int, ...] = (200,)) -> requests.Response:
        """As ``send``, for answers of which only the status and the headers matter."""
        response = self.send(ask, accepted)
        discard(response)
        return response

    def send_once(self, ask: Ask, accepted: tuple[int, ...] = (200,)) -> requests.Response:
        """As ``ask``, but without second tries: raises TransientError where one may help."""
        response = self._authenticated(ask)
        if response.status_code in RETRYABLE_STATUS:
            discard(response)
            raise TransientError(f"the server answers {response.status_code}")
        self._accept(ask, response, accepted)
        discard(response)
        return response

    def read(self, response: requests.Response, limit: int) -> bytes:
        """A small body; one byte more than ``limit`` if it is longer.  Raises TransientError if it breaks."""
        return read_limited(response, limit, self.settings.stall_timeout_s)

    def fetch(self, ask: Ask, limit: int) -> tuple[requests.Response, bytes]:
        """An answer with its small body, tried again as a whole; RegistryError if it is over ``limit`` bytes."""
        failures = 0
        while True:
            response = self.send(ask)
            try:
                raw = self.read(response, limit)
            except TransientError as error:
                failures += 1
                self.retrier.wait(ask.step, ask.subject, str(error), failures)
                continue
            if len(raw) > limit:
                raise RegistryError(ask.step, ask.subject, f"the answer is longer than {limit} bytes")
            return response, raw

    def _authenticated(self, ask: Ask) -> requests.Response:
        """Send once, and once more with new credentials if the first answer is 401."""
        # The registry may send us elsewhere (an upload's Location): credentials stay with the host they are for.
        at_home = Origin.of(ask.target) == ask.endpoint.origin
        header = self._authenticator.header(ask.endpoint, ask.repository, ask.scope) if at_home else ""
        response = self._transport.send(_exchange(ask, header))
        challenges = response.headers.get("WWW-Authenticate", "")
        # A 401 from where a redirect led is not the registry's question, and must not get its answer.
        if response.status_code != 401 or not challenges or Origin.of(str(response.url)) != ask.endpoint.origin:
            return response
        discard(response)
        header = self._authenticator.answer(ask.endpoint, ask.repository, ask.scope, challenges, header)
        response = self._transport.send(_exchange(ask, header))
        if response.status_code == 401 and header.startswith("Basic "):
            # Nothing was wrong with a token or its scope: the registry does not take this password.
            discard(response)
            raise self._authenticator.refusal(ask.endpoint, ask.repository)
        return response

    def _accept(self, ask: Ask, response: requests.Response, accepted: tuple[int, ...]) -> requests.Response:
        status = response.status_code
        if status in accepted:
            return response
        said = self._error_text(response)
        if status in (401, 403):
            cause = said or f"the server answers {status}"
            remedy = f"log in to {ask.endpoint.registry} with an account that may do this, or check the name"
            raise AuthError(ask.step, ask.subject, cause, remedy)
        if status == 404:
            raise NotFoundError(ask.step, ask.subject, said or "not found", "check the name and the tag")
        detail = f": {said}" if said else ""
        raise RegistryError(ask.step, ask.subject, f"{ask.endpoint.base} answers {status}{detail}")

    def _error_text(self, response: requests.Response) -> str:
        try:
            return error_text(self.read(response, _MAX_ERROR_BODY))
        except TransientError:
            return ""


def _exchange(ask: Ask, header: str) -> Exchange:
    return Exchange(ask.method, ask.target, ask.headers, header, ask.body, ask.length, ask.patience_s)


def error_text(raw: bytes) -> str:
    """What a registry's error document says (distribution-spec, "Error Codes"), fit for a terminal; "" if nothing."""
    try:
        document: Any = json.loads(raw)
        errors = document["errors"]
        texts = [f"{one['code']}: {one['message']}" if one.get("message") else str(one["code"]) for one in errors]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ""
    # A registry's words may hold escape sequences that would drive the reader's terminal.
    return ascii("; ".join(texts))[1:-1][:_MAX_ERROR_TEXT]
