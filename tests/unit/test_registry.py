"""Finding images in a registry that fails on purpose: whole and verified, or a clear error."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from imagebuild.errors import AuthError, ManifestError, NotFoundError, RegistryError
from imagebuild.oci.platforms import Platform
from imagebuild.oci.reference import Reference
from tests.fake_registry import (
    OCI_INDEX,
    OCI_MANIFEST,
    FakeRegistry,
    Fault,
    describe,
    sha256,
)
from tests.registry_client import AMD64, BIG, STALL_S, Sleeps, blob_of, client, download, name


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


# --- resolving ---------------------------------------------------------------------------------------------------


def test_resolve(fake: FakeRegistry) -> None:
    image = fake.add_image("app", [b"one", b"two"], config={"Env": ["A=b"]})
    with client() as registry:
        found = registry.resolve(name(fake), AMD64)
        assert found.digest == image.manifest_digest
        assert found.index_digest is None
        assert found.manifest.raw == image.manifest
        assert found.config.run.env == ("A=b",)
        assert found.config.diff_ids == (sha256(b"one"), sha256(b"two"))
        assert registry.digest(name(fake)) == image.manifest_digest
        assert registry.resolve(name(fake, suffix=f":gone@{image.manifest_digest}"), AMD64).digest == found.digest


def test_resolve_through_an_index_and_a_nested_one(fake: FakeRegistry) -> None:
    amd = fake.add_image("app", [b"amd"], tag="a")
    arm = fake.add_image("app", [b"arm"], tag="b", architecture="arm64")
    entries = [
        describe(OCI_MANIFEST, amd.manifest, platform={"os": "linux", "architecture": "amd64"}),
        describe(OCI_MANIFEST, arm.manifest, platform={"os": "linux", "architecture": "arm64", "variant": "v8"}),
    ]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    raw = fake.add_manifest("app", "multi", index, OCI_INDEX)
    nested = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [describe(OCI_INDEX, raw)]}
    fake.add_manifest("app", "nested", nested, OCI_INDEX)
    with client() as registry:
        found = registry.resolve(name(fake, suffix=":multi"), Platform.parse("linux/arm64"))
        assert (found.digest, found.index_digest) == (arm.manifest_digest, sha256(raw))
        assert registry.resolve(name(fake, suffix=":nested"), AMD64).digest == amd.manifest_digest
        with pytest.raises(ManifestError, match=r"available: linux/amd64, linux/arm64"):
            registry.resolve(name(fake, suffix=":multi"), Platform.parse("linux/s390x"))


def test_an_image_for_another_platform_is_refused(fake: FakeRegistry) -> None:
    fake.add_image("app", [b"x"], architecture="riscv64")
    with client() as registry, pytest.raises(ManifestError, match="for linux/riscv64 only"):
        registry.resolve(name(fake), AMD64)


@pytest.mark.parametrize("what", ["/manifests/", "/blobs/"])
def test_a_wrong_digest_is_noticed(fake: FakeRegistry, what: str) -> None:
    fake.add_image("app", [b"x"])
    fake.fail("GET", what, Fault.CORRUPT)
    with client() as registry, pytest.raises(ManifestError, match="the content's digest is"):
        registry.resolve(name(fake), AMD64)


def test_a_manifest_under_anothers_digest_is_noticed(fake: FakeRegistry) -> None:
    image = fake.add_image("app", [b"x"])
    asked = sha256(b"something else")
    fake.manifests["app", asked] = OCI_MANIFEST, image.manifest
    with client() as registry, pytest.raises(ManifestError, match="verify manifest"):
        registry.resolve(name(fake, suffix=f"@{asked}"), AMD64)


def test_schema_1_is_refused(fake: FakeRegistry) -> None:
    media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    fake.add_manifest("app", "latest", {"schemaVersion": 1, "fsLayers": []}, media_type)
    with client() as registry, pytest.raises(ManifestError, match="schema 1"):
        registry.resolve(name(fake), AMD64)


def test_a_config_of_a_gigabyte_is_not_fetched(fake: FakeRegistry) -> None:
    image = fake.add_image("app", [b"x"])
    document = json.loads(image.manifest)
    document["config"]["size"] = 1 << 30
    fake.add_manifest("app", "latest", document)
    with client() as registry, pytest.raises(ManifestError, match="are allowed"):
        registry.resolve(name(fake), AMD64)
    assert fake.count("GET", "/blobs/") == 0


def test_a_manifest_without_end_is_cut_off(fake: FakeRegistry) -> None:
    fake.add_manifest("app", "latest", b" " * (3 << 20))
    fake.fail("GET", "/manifests/", Fault.ENDLESS)
    with client() as registry, pytest.raises(RegistryError, match="longer than"):
        registry.resolve(name(fake), AMD64)


# --- refusals and second tries -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AuthError), (403, AuthError), (404, NotFoundError), (400, RegistryError)]
)
def test_a_clear_no_is_not_asked_twice(fake: FakeRegistry, status: int, kind: type[RegistryError]) -> None:
    fake.fail("GET", "/manifests/", Fault.STATUS, status=status)
    with client() as registry, pytest.raises(kind) as caught:
        registry.resolve(name(fake), AMD64)
    assert "as planned" in str(caught.value)
    assert str(caught.value).isprintable()  # the registry's escape sequences do not reach the terminal
    assert fake.count("GET", "/manifests/") == 1


def test_an_unknown_name(fake: FakeRegistry) -> None:
    with client() as registry, pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN"):
        registry.resolve(name(fake, "nowhere"), AMD64)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_bad_moment_is_waited_out(fake: FakeRegistry, status: int) -> None:
    fake.add_image("app", [b"x"])
    fake.fail("GET", "/manifests/", Fault.STATUS, status=status, times=3)
    sleeps = Sleeps()
    with client(sleeps) as registry:
        registry.resolve(name(fake), AMD64)
    assert len(sleeps) == 3
    assert sleeps == sorted(sleeps)


def test_patience_ends(fake: FakeRegistry) -> None:
    fake.fail("GET", "/manifests/", Fault.STATUS, status=503, times=99)
    with client() as registry, pytest.raises(RegistryError, match="503 .*4 times in a row"):
        registry.resolve(name(fake), AMD64)
    assert fake.count("GET", "/manifests/") == 4


def test_retry_after_is_kept_to_and_has_a_bound(fake: FakeRegistry) -> None:
    fake.add_image("app", [b"x"])
    sleeps = Sleeps()
    with client(sleeps) as registry:
        fake.fail("GET", "/manifests/", Fault.STATUS, status=429, headers={"Retry-After": "7"})
        registry.resolve(name(fake), AMD64)
        assert 7 <= sleeps[0] < 8
        fake.fail("GET", "/manifests/", Fault.STATUS, status=429, headers={"Retry-After": "3600"})
        with pytest.raises(RegistryError, match="asks to wait 3600 s"):
            registry.resolve(name(fake), AMD64)
        assert len(sleeps) == 1


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATE, Fault.RESET_MIDWAY, Fault.STALL, Fault.DRIP])
@pytest.mark.parametrize("what", ["/manifests/", "/blobs/"])
def test_a_broken_answer_is_fetched_again(fake: FakeRegistry, what: str, fault: Fault) -> None:
    fake.add_image("app", [b"x"])
    fake.fail("GET", what, fault)
    with client(stall_s=STALL_S) as registry:
        registry.resolve(name(fake), AMD64)


def test_nobody_there() -> None:
    with socket.socket() as silent, client() as registry:
        silent.bind(("127.0.0.1", 0))  # nobody else gets it, and it does not listen
        port = silent.getsockname()[1]
        with pytest.raises(RegistryError, match="nothing listens at"):
            registry.resolve(Reference.parse(f"127.0.0.1:{port}/app"), AMD64)


def test_no_such_host() -> None:
    with client() as registry, pytest.raises(RegistryError, match="no such host|broke") as caught:
        registry.resolve(Reference.parse("registry.invalid/app"), AMD64)
    assert "registry.invalid" in str(caught.value)


def test_an_unreachable_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    with client() as registry, pytest.raises(RegistryError, match="proxy"):
        registry.resolve(Reference.parse("registry.invalid/app"), AMD64)


# --- mirrors -----------------------------------------------------------------------------------------------------


def test_a_mirror_comes_first_and_may_fail(fake: FakeRegistry) -> None:
    with FakeRegistry() as mirror:
        for one, repository in ((mirror, "hub/app"), (fake, "app")):
            image = one.add_image(repository, [b"layer"])
        mirrors = {fake.address: (f"http://{mirror.address}/hub",)}
        with client(mirrors=mirrors) as registry:
            found = registry.resolve(name(fake), AMD64)
            assert found.digest == image.manifest_digest
            assert fake.seen == []
            mirror.manifests.clear()
            assert registry.resolve(name(fake), AMD64).digest == found.digest
            assert fake.count("GET", "/manifests/") == 1


def test_a_download_may_begin_at_a_mirror_and_end_at_the_registry(fake: FakeRegistry) -> None:
    descriptor = blob_of(fake)
    with FakeRegistry() as mirror:
        mirror.add_blob(BIG)
        mirror.fail("GET", "/blobs/", Fault.TRUNCATE)
        mirror.fail("GET", "/blobs/", Fault.STATUS, status=404)
        with client(mirrors={fake.address: (mirror.address,)}) as registry:
            assert download(registry, fake, descriptor) == BIG
    assert "range" in fake.seen[-1].headers
