"""Challenges, credentials and tokens: what is understood, where it is found, and who gets to see it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuild.errors import AuthError, RegistryError
from imagebuild.oci.platforms import Platform
from imagebuild.oci.reference import Reference
from imagebuild.registry.challenge import parse_challenges
from imagebuild.registry.credentials import Credential, CredentialFiles, FixedCredentials
from imagebuild.registry.registry import Registry
from imagebuild.registry.retry import Retrier, RetryPolicy
from imagebuild.registry.settings import RegistrySettings
from tests.fake_registry import IDENTITY_TOKEN, PASSWORD, USER, FakeRegistry, Fault, basic

AMD64 = Platform("linux", "amd64")
NO_WAIT = Retrier(RetryPolicy(attempts=2), sleep=lambda seconds: None)

# --- challenges ------------------------------------------------------------------------------------------------------


def challenges(header: str) -> list[tuple[str, dict[str, str], str]]:
    return [(one.scheme, dict(one.parameters), one.token68) for one in parse_challenges(header)]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        ("Negotiate", [("negotiate", {}, "")]),
        ('Basic realm="x"', [("basic", {"realm": "x"}, "")]),
        ('BASIC Realm = "x"', [("basic", {"realm": "x"}, "")]),
        (
            'Bearer realm="https://a/t?b=c,d",service="r",scope="repository:x:pull,push"',
            [("bearer", {"realm": "https://a/t?b=c,d", "service": "r", "scope": "repository:x:pull,push"}, "")],
        ),
        (
            'Basic realm="a, Bearer realm=\\"b\\"", Bearer realm=c, Negotiate dG9r==, Digest nonce="n"',
            [
                ("basic", {"realm": 'a, Bearer realm="b"'}, ""),
                ("bearer", {"realm": "c"}, ""),
                ("negotiate", {}, "dG9r=="),
                ("digest", {"nonce": "n"}, ""),
            ],
        ),
        (", ,Basic realm=x,,a=b", [("basic", {"realm": "x", "a": "b"}, "")]),
        ("Bearer realm=https://a:1/t", [("bearer", {"realm": "https://a:1/t"}, "")]),
        ('Bearer realm="first", realm="second"', [("bearer", {"realm": "first"}, "")]),
        ('@@ Basic realm="x"', [("basic", {"realm": "x"}, "")]),
        ('Basic realm="never closed', [("basic", {}, ""), ("realm", {}, "")]),
    ],
)
def test_challenges(header: str, expected: list[tuple[str, dict[str, str], str]]) -> None:
    if "never closed" in header:
        assert challenges(header)[0][0] == "basic"
    else:
        assert challenges(header) == expected


@given(st.text(max_size=60) | st.text('Bb ,="\\/t', max_size=60))
def test_any_header_is_parsed_in_the_end(header: str) -> None:
    parse_challenges(header)


# --- credential files ------------------------------------------------------------------------------------------------


def packed(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def files(folder: Path, content: object) -> CredentialFiles:
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return CredentialFiles((folder / "absent.json", path))


def helper(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\nread server\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("key", "registry", "repository", "found"),
    [
        ("r.io", "r.io", "a/b", True),
        ("https://r.io", "r.io", "a", True),
        ("https://r.io/v1/", "r.io", "a", True),
        ("r.io:5000", "r.io:5000", "a", True),
        ("r.io", "r.io:5000", "a", False),
        ("r.io/a", "r.io", "a/b", True),
        ("r.io/a", "r.io", "ab/b", False),
        ("r.io/a/b", "r.io", "a", False),
        ("https://index.docker.io/v1/", "docker.io", "library/x", True),
        ("docker.io", "docker.io", "library/x", True),
        ("registry-1.docker.io", "docker.io", "library/x", True),
        ("docker.io.evil.example", "docker.io", "library/x", False),
    ],
)
def test_keys_of_auths(tmp_path: Path, key: str, registry: str, repository: str, found: bool) -> None:
    credential = files(tmp_path, {"auths": {key: packed("u", "p:w")}}).find(registry, repository)
    assert (credential is not None) is found
    if credential:
        assert (credential.username, credential.password) == ("u", "p:w")


def test_the_narrowest_key_wins(tmp_path: Path) -> None:
    store = files(tmp_path, {"auths": {"r.io": packed("wide", ""), "r.io/team": packed("narrow", "")}})
    found, other = store.find("r.io", "team/app"), store.find("r.io", "else")
    assert found is not None
    assert other is not None
    assert (found.username, other.username) == ("narrow", "wide")


def test_other_forms_of_an_entry(tmp_path: Path) -> None:
    store = files(
        tmp_path,
        {
            "auths": {
                "plain": {"username": "u", "password": "p"},
                "identity": {**packed("<token>", ""), "identitytoken": "i"},
                "registry": {"registrytoken": "r"},
                "empty": {},
                "wrong": 7,
                "padded": {"auth": base64.b64encode(b"u:p\0\0").decode()},
            }
        },
    )
    plain, identity, registry, padded = (store.find(name, "x") for name in ("plain", "identity", "registry", "padded"))
    assert plain == Credential("u", "p", source=plain.source if plain else "")
    assert identity is not None
    assert identity.identity_token == "i"
    assert registry is not None
    assert registry.registry_token == "r"
    assert padded is not None
    assert padded.password == "p"
    assert store.find("empty", "x") is None
    assert store.find("wrong", "x") is None
    assert "'p'" not in repr(plain)


def test_helpers_come_before_what_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, "own", 'echo "{\\"Username\\":\\"own\\",\\"Secret\\":\\"$server\\"}"', monkeypatch)
    helper(tmp_path, "all", 'echo "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"$server\\"}"', monkeypatch)
    helper(tmp_path, "none", 'echo "credentials not found in native keychain"; exit 1', monkeypatch)
    store = files(
        tmp_path,
        {
            "credHelpers": {"r.io": "own", "n.io": "none"},
            "credsStore": "all",
            "auths": {"r.io": packed("file", ""), "docker.io": {}},
        },
    )
    own, hub, fallen_through = store.find("r.io", "x"), store.find("docker.io", "library/x"), store.find("n.io", "x")
    assert own is not None
    assert (own.username, own.password, own.source) == ("own", "r.io", "docker-credential-own")
    assert hub is not None
    assert hub.identity_token == "https://index.docker.io/v1/"
    assert fallen_through is not None
    assert fallen_through.identity_token == "n.io"
    only_file = files(tmp_path, {"credsStore": "none", "auths": {"r.io": packed("file", "")}}).find("r.io", "x")
    assert only_file is not None
    assert only_file.username == "file"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ({"auths": {"r.io": {"auth": "***"}}}, "not base64"),
        ({"credsStore": "absent-helper"}, "cannot be run"),
        ({"credsStore": "../evil"}, "not the name of a credential helper"),
        ({"credsStore": "broken"}, "locked"),
        ({"credsStore": "babble"}, "not JSON"),
        ({"credsStore": "partial"}, "no Username and Secret"),
    ],
)
def test_what_is_broken_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, problem: str) -> None:
    helper(tmp_path, "broken", "echo the keyring is locked >&2; exit 2", monkeypatch)
    helper(tmp_path, "babble", "echo hello", monkeypatch)
    helper(tmp_path, "partial", "echo '{}'", monkeypatch)
    with pytest.raises(AuthError, match=problem):
        files(tmp_path, content).find("r.io", "x")


def test_files_of_a_user() -> None:
    def names(environment: Mapping[str, str]) -> list[str]:
        return [str(path) for path in CredentialFiles.of_user(environment).paths]

    assert names({"HOME": "/h"}) == ["/h/.docker/config.json", "/h/.config/containers/auth.json"]
    assert names({"HOME": "/h", "DOCKER_CONFIG": "/d", "XDG_RUNTIME_DIR": "/r", "REGISTRY_AUTH_FILE": "/a"}) == [
        "/a",
        "/d/config.json",
        "/r/containers/auth.json",
        "/h/.config/containers/auth.json",
    ]


def test_missing_and_empty_files_mean_anonymous(tmp_path: Path) -> None:
    assert files(tmp_path, "").find("r.io", "x") is None
    assert files(tmp_path, {"auths": None, "credHelpers": 1}).find("r.io", "x") is None


# --- the conversation ------------------------------------------------------------------------------------------------


def client(fake: FakeRegistry, credential: Credential | None = None) -> Registry:
    settings = RegistrySettings(stall_timeout_s=5)
    chosen = FixedCredentials(fake.address, credential) if credential else CredentialFiles(())
    return Registry(settings, chosen, NO_WAIT)


LOGIN = Credential(USER, PASSWORD, source="the test")


@pytest.mark.parametrize("auth", ["basic", "bearer", "bearer+basic"])
def test_logging_in(auth: str) -> None:
    with FakeRegistry(auth=auth) as fake, client(fake, LOGIN) as registry:
        fake.add_image("app", [b"layer"])
        reference = Reference.parse(f"{fake.address}/app")
        image = registry.resolve(reference, AMD64)
        with registry.blob(reference, image.manifest.layers[0]) as stream:
            b"".join(stream)
        # One 401 and one token for everything that follows.
        assert fake.count("GET", "/manifests/") == 2
        assert fake.count("GET", "/token") == (0 if auth == "basic" else 1)
        if "bearer" in auth:
            assert all(one.authorization != basic(USER, PASSWORD) for one in fake.seen if "/token" not in one.path)


def test_an_anonymous_token() -> None:
    with FakeRegistry(auth="bearer") as fake, client(fake) as registry:
        fake.add_image("app", [b"layer"])
        registry.resolve(Reference.parse(f"{fake.address}/app"), AMD64)
        token = next(one for one in fake.seen if "/token" in one.path)
        assert token.authorization == ""
        assert "scope=repository%3Aapp%3Apull" in token.path


def test_an_identity_token() -> None:
    with (
        FakeRegistry(auth="bearer", anonymous_tokens=False) as fake,
        client(fake, Credential(identity_token=IDENTITY_TOKEN)) as registry,
    ):
        fake.add_image("app", [b"layer"])
        registry.resolve(Reference.parse(f"{fake.address}/app"), AMD64)
        assert fake.count("POST", "/token") == 1
        assert fake.count("GET", "/token") == 0


def test_a_token_that_expires_early_is_renewed() -> None:
    with FakeRegistry(auth="bearer") as fake, client(fake) as registry:
        fake.add_image("app", [b"layer"])
        reference = Reference.parse(f"{fake.address}/app")
        registry.resolve(reference, AMD64)
        fake.expire_tokens()
        registry.resolve(reference, AMD64)
        assert fake.count("GET", "/token") == 2


def test_a_token_server_with_a_cold_is_asked_again() -> None:
    with FakeRegistry(auth="bearer") as fake, client(fake) as registry:
        fake.add_image("app", [b"layer"])
        fake.fail("GET", "/token", Fault.STATUS, status=503)
        registry.resolve(Reference.parse(f"{fake.address}/app"), AMD64)


@pytest.mark.parametrize(
    ("auth", "credential", "problem"),
    [
        ("basic", None, "none are known"),
        ("basic", Credential("user", "wrong"), "as planned|it refuses the credentials from the caller"),
        ("bearer", Credential("user", "wrong", source="config.json"), "refuses the credentials from config.json"),
        ("bearer", None, "no token to anonymous users"),
        ("negotiate", Credential("user", "x"), "offers negotiate"),
    ],
)
def test_refusals_say_why(auth: str, credential: Credential | None, problem: str) -> None:
    with FakeRegistry(auth=auth, anonymous_tokens=False) as fake, client(fake, credential) as registry:
        fake.add_image("app", [b"layer"])
        with pytest.raises(AuthError, match=problem):
            registry.resolve(Reference.parse(f"{fake.address}/app"), AMD64)
        assert fake.count("GET", "/manifests/") <= 2  # a refusal is not tried again


@pytest.mark.parametrize(
    "realm",
    ["http://token.example/t", "ftp://x/t", "https://user@x/t", "file:///etc/passwd", "http://[x/t"],
)
def test_passwords_are_not_sent_to_just_anywhere(realm: str) -> None:
    with FakeRegistry() as fake, client(fake, LOGIN) as registry:
        headers = {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'}
        fake.fail("GET", "/manifests/", Fault.STATUS, status=401, headers=headers)
        with pytest.raises(RegistryError, match="not encrypted|not a plain http|Invalid"):
            registry.resolve(Reference.parse(f"{fake.address}/app"), AMD64)


def test_a_login_form_does_not_follow_a_redirect() -> None:
    identity = Credential(identity_token=IDENTITY_TOKEN)
    with FakeRegistry(auth="bearer") as fake, client(fake, identity) as registry:
        elsewhere = {"Location": f"http://{fake.storage_address}/token"}
        fake.fail("POST", "/token", Fault.REDIRECT, status=307, headers=elsewhere)
        with pytest.raises(RegistryError, match="POST is redirected"):
            registry.resolve(Reference.parse(f"{fake.address}/app"), AMD64)
        assert fake.seen_by_storage == []


def test_a_401_after_a_redirect_gets_no_answer() -> None:
    """Whoever is redirected to may ask for our password, and must not get it."""
    with FakeRegistry(redirect_blobs=True) as fake, client(fake, LOGIN) as registry:
        fake.add_image("app", [b"layer"])
        headers = {"WWW-Authenticate": 'Basic realm="give"'}
        fake.fail("GET", "/bucket/", Fault.STATUS, status=401, headers=headers)
        with pytest.raises(AuthError):
            registry.resolve(Reference.parse(f"{fake.address}/app"), AMD64)
        assert [one.authorization for one in fake.seen_by_storage] == [""]
