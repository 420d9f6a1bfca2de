"""Finding a user's credentials where Docker and the containers tools (podman, skopeo, buildah) keep them.

Files, first match wins: ``$REGISTRY_AUTH_FILE``, Docker's ``config.json`` (in ``$DOCKER_CONFIG`` or ``~/.docker``), the
containers' ``auth.json`` in ``$XDG_RUNTIME_DIR/containers`` and in ``~/.config/containers``.  Within a file: the
registry's own helper (``credHelpers``), the helper for all (``credsStore``), what is written in it (``auths``).

Formats: docker/cli ``config.json``, docker-credential-helpers' protocol, containers-auth.json(5).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from imagebuild.errors import AuthError
from imagebuild.oci.reference import DOCKER_HUB

# Docker Hub's key in every file and helper dates from its version 1 interface.
DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_DOCKER_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})

# A helper may ask the user to unlock a keyring, but nobody waits longer than this for a pull to begin.
_HELPER_TIMEOUT_S = 60
_MAX_FILE = 1 << 20  # a file with a thousand logins is a tenth of it
# What a helper says as user name when the secret is an identity token (docker-credential-helpers).
_TOKEN_USER = "<token>"
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_STEP = "read credentials"


@dataclass(frozen=True)
class Credential:
    """What proves who the user is, and where it was found.  Secrets stay out of ``repr``."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)  # exchanged for access tokens (OAuth2 refresh token)
    registry_token: str = field(default="", repr=False)  # sent as it is (Bearer)
    source: str = "the caller"

    @property
    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617), empty without a user name."""
        if not self.username:
            return ""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class Credentials(Protocol):
    """Anything that knows credentials: files, or what an API request brought along."""

    def find(self, registry: str, repository: str) -> Credential | None:
        """The credential for a repository, None to go anonymous.  May raise AuthError."""


@dataclass(frozen=True)
class FixedCredentials:
    """One credential for one registry, as the Docker API's X-Registry-Auth carries it."""

    registry: str
    credential: Credential

    def find(self, registry: str, repository: str) -> Credential | None:  # noqa: ARG002 - the protocol's form
        """The credential if it is for this registry."""
        return self.credential if registry == self.registry else None


@dataclass(frozen=True)
class CredentialFiles:
    """Credentials out of files, read afresh at each question so that a login counts at once."""

    paths: tuple[Path, ...]

    @classmethod
    def of_user(cls, environment: Mapping[str, str] = os.environ) -> CredentialFiles:
        """The files of the user whose environment this is."""
        home = Path(environment.get("HOME") or "/root")
        docker = Path(environment.get("DOCKER_CONFIG") or home / ".docker")
        config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
        paths = [docker / "config.json", config / "containers" / "auth.json"]
        if runtime := environment.get("XDG_RUNTIME_DIR"):
            paths.insert(1, Path(runtime) / "containers" / "auth.json")
        if explicit := environment.get("REGISTRY_AUTH_FILE"):
            paths.insert(0, Path(explicit))
        return cls(tuple(paths))

    def find(self, registry: str, repository: str) -> Credential | None:
        """The first credential that any file has for the repository."""
        for path in self.paths:
            if (content := _load(path)) is not None and (found := _search(path, content, registry, repository)):
                return found
        return None


def _load(path: Path) -> dict[str, Any] | None:
    """The file's JSON object; None if there is no file."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise AuthError(_STEP, str(path), error.strerror or str(error), "make the file readable") from error
    if not raw.strip():
        return None  # an empty file is how some tools write "no logins"
    try:
        if len(raw) > _MAX_FILE:
            raise ValueError(f"larger than {_MAX_FILE} bytes")
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise AuthError(_STEP, str(path), f"not JSON: {error}", "repair the file, or log in again") from error
    if not isinstance(content, dict):
        raise AuthError(_STEP, str(path), "expected a JSON object", "repair the file, or log in again")
    return content


def _search(path: Path, content: dict[str, Any], registry: str, repository: str) -> Credential | None:
    """Ask the helpers that the file names, then the file itself."""
    helpers, auths = _mapping(content.get("credHelpers")), _mapping(content.get("auths"))
    own = next((helpers[key] for key in helpers if _host_of(key) == _canonical(registry)), None)
    for helper in (own, content.get("credsStore")):
        if isinstance(helper, str) and helper and (found := ask_helper(helper, registry)):
            return found
    entries = {_normal_key(key): value for key, value in auths.items()}
    for wanted in _keys_for(registry, repository):
        if isinstance(entry := entries.get(wanted), dict) and (found := _credential(path, wanted, entry)):
            return found
    return None


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _canonical(registry: str) -> str:
    return DOCKER_HUB if registry in _DOCKER_HUB_NAMES else registry


def _normal_key(key: str) -> str:
    """A key of ``auths`` as ``host[/namespace...]``: old Docker wrote URLs such as ``https://host/v1/``."""
    scheme, separator, rest = key.partition("://")
    if separator and scheme in ("http", "https"):
        key = rest.partition("/")[0]  # a URL's path is an API's, never a namespace
    host, slash, namespace = key.rstrip("/").partition("/")
    return _canonical(host) + slash + namespace


def _host_of(key: str) -> str:
    return _normal_key(key).partition("/")[0]


def _keys_for(registry: str, repository: str) -> Iterator[str]:
    """Keys from the narrowest to the widest: host/a/b, host/a, host (containers-auth.json(5))."""
    parts = [_canonical(registry), *repository.split("/")]
    for length in range(len(parts), 0, -1):
        yield "/".join(parts[:length])


def _credential(path: Path, key: str, entry: dict[str, Any]) -> Credential | None:
    """One entry of ``auths``; None for the empty ones that Docker leaves when a helper has the secret."""
    texts = {name: value for name, value in entry.items() if isinstance(value, str)}
    username, password = texts.get("username", ""), texts.get("password", "")
    if packed := texts.get("auth"):
        try:
            username, _, password = base64.b64decode(packed, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise AuthError(
                _STEP, f"{path}: {key}", "its auth is not base64 of user:password", f"docker login {key}"
            ) from error
        password = password.rstrip("\0")  # old Docker padded it
    found = Credential(
        username, password, texts.get("identitytoken", ""), texts.get("registrytoken", ""), source=str(path)
    )
    return found if found.username or found.identity_token or found.registry_token else None


def ask_helper(helper: str, registry: str) -> Credential | None:
    """Ask ``docker-credential-<helper>`` for a registry's credential; None if it has none.

    Raises AuthError where the helper is missing or fails: going on anonymously would end in a "denied" that hides
    the cause.
    """
    program = f"docker-credential-{helper}"
    if not _HELPER_NAME.fullmatch(helper):
        raise AuthError(_STEP, program, "not the name of a credential helper", "correct it in config.json")
    server = DOCKER_HUB_KEY if _canonical(registry) == DOCKER_HUB else registry
    try:
        done = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=_HELPER_TIMEOUT_S, check=False
        )
    except OSError as error:
        cause = f"cannot be run: {error.strerror}"
        raise AuthError(_STEP, program, cause, "install it, or take it out of config.json") from error
    except subprocess.TimeoutExpired as error:
        cause = f"no answer for {registry} in {_HELPER_TIMEOUT_S} s"
        raise AuthError(_STEP, program, cause, "unlock the keyring it uses") from error
    if done.returncode != 0:
        # The protocol's only sign of "nothing stored" is this text, on either stream.
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        if "not found" in said.lower():
            return None
        raise AuthError(_STEP, program, f"failed for {registry}: {said[:200]}", f"docker login {registry}")
    return _helper_answer(program, done.stdout)


def _helper_answer(program: str, output: bytes) -> Credential | None:
    try:
        answer = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise AuthError(_STEP, program, "its answer is not JSON", "update the helper") from error
    fields = _mapping(answer)
    username, secret = fields.get("Username"), fields.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise AuthError(_STEP, program, "its answer has no Username and Secret", "update the helper")
    if not secret:
        return None
    if username == _TOKEN_USER:
        return Credential(identity_token=secret, source=program)
    return Credential(username, secret, source=program)
