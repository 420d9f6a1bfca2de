"""The client against a registry that fails on purpose: everything arrives whole and once, or a clear error does."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from imagebuild.credentials import Credential, CredentialFiles, FixedCredentials
from imagebuild.errors import AuthError, ManifestError, NotFoundError, RegistryError
from imagebuild.manifest import Descriptor
from imagebuild.platforms import Platform
from imagebuild.reference import Reference
from imagebuild.registry import Registry
from imagebuild.retry import Retrier, RetryPolicy
from imagebuild.settings import RegistrySettings
from imagebuild.upload import Pushed
from tests.fake_registry import (
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    PASSWORD,
    USER,
    FakeRegistry,
    Fault,
    describe,
    sha256,
)

AMD64 = Platform("linux", "amd64")
STALL_S = 0.3
BIG = hashlib.shake_256(b"big").digest(3 << 20)


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


class Sleeps(list[float]):
    """Notes the pauses instead of taking them."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def client(sleeps: Sleeps | None = None, attempts: int = 4, **settings: object) -> Registry:
    chosen = RegistrySettings(stall_timeout_s=STALL_S, connect_timeout_s=2, **settings)  # type: ignore[arg-type]
    retrier = Retrier(RetryPolicy(attempts=attempts), sleep=sleeps if sleeps is not None else Sleeps())
    return Registry(chosen, CredentialFiles(()), retrier)


def name(fake: FakeRegistry, repository: str = "app", suffix: str = "") -> Reference:
    return Reference.parse(f"{fake.address}/{repository}{suffix}")


def blob_of(fake: FakeRegistry, data: bytes = BIG) -> Descriptor:
    return Descriptor(OCI_LAYER_GZIP, fake.add_blob(data), len(data))


def download(registry: Registry, fake: FakeRegistry, descriptor: Descriptor) -> bytes:
    with registry.blob(name(fake), descriptor) as stream:
        return b"".join(stream)


# --- resolving -------------------------------------------------------------------------------------------------------


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


# --- refusals and second tries ---------------------------------------------------------------------------------------


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
    with client() as registry:
        registry.resolve(name(fake), AMD64)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with client() as registry, pytest.raises(RegistryError, match="nothing listens at"):
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


# --- blobs -----------------------------------------------------------------------------------------------------------


def test_a_blob_comes_in_large_pieces(fake: FakeRegistry) -> None:
    descriptor = blob_of(fake)
    with client() as registry, registry.blob(name(fake), descriptor) as stream:
        pieces = list(stream)
    assert b"".join(pieces) == BIG
    assert all(256 << 10 <= len(piece) <= 512 << 10 for piece in pieces[:-1])
    assert stream.delivered == len(BIG)


@pytest.mark.parametrize("data", [b"", b"x"])
def test_small_blobs(fake: FakeRegistry, data: bytes) -> None:
    descriptor = blob_of(fake, data)
    with client() as registry:
        assert download(registry, fake, descriptor) == data


@pytest.mark.parametrize("fault", [Fault.TRUNCATE, Fault.RESET_MIDWAY, Fault.STALL])
def test_a_broken_download_goes_on_where_it_stopped(fake: FakeRegistry, fault: Fault) -> None:
    descriptor = blob_of(fake)
    fake.fail("GET", "/blobs/", fault, times=2)
    with client() as registry:
        assert download(registry, fake, descriptor) == BIG
    ranges = [one.headers.get("range") for one in fake.seen if "/blobs/" in one.path]
    assert ranges[0] is None
    assert len(ranges) == 3
    assert all(one and int(one[6:-1]) > 0 for one in ranges[1:])


def test_a_server_that_ignores_the_range(fake: FakeRegistry) -> None:
    descriptor = blob_of(fake)
    fake.fail("GET", "/blobs/", Fault.TRUNCATE)
    fake.fail("GET", "/blobs/", Fault.IGNORE_RANGE)
    with client() as registry:
        assert download(registry, fake, descriptor) == BIG


@pytest.mark.parametrize(
    ("faults", "problem"),
    [
        ([Fault.TRUNCATE, Fault.WRONG_RANGE], "sends another range"),
        ([Fault.SHORT], "announces"),
        ([Fault.LONG], "announces"),
        ([Fault.ENDLESS], "it goes on"),
    ],
)
def test_a_blob_of_another_size_is_refused(fake: FakeRegistry, faults: list[Fault], problem: str) -> None:
    descriptor = blob_of(fake)
    for fault in faults:
        fake.fail("GET", "/blobs/", fault)
    with client() as registry, pytest.raises(RegistryError, match=problem) as caught:
        download(registry, fake, descriptor)
    assert f"promises {len(BIG)} bytes" in str(caught.value)


def test_no_more_is_handed_on_than_was_promised(fake: FakeRegistry) -> None:
    descriptor = blob_of(fake)
    fake.fail("GET", "/blobs/", Fault.ENDLESS)
    got: list[bytes] = []
    with client() as registry, registry.blob(name(fake), descriptor) as stream, pytest.raises(RegistryError):
        got.extend(stream)
    assert sum(map(len, got)) <= len(BIG)


def test_a_corrupt_blob_is_the_consumers_to_notice(fake: FakeRegistry) -> None:
    descriptor = blob_of(fake)
    fake.fail("GET", "/blobs/", Fault.CORRUPT)
    with client() as registry:
        assert sha256(download(registry, fake, descriptor)) != descriptor.digest


def test_a_download_that_never_gets_on_ends(fake: FakeRegistry) -> None:
    descriptor = blob_of(fake, b"tiny")
    fake.fail("GET", "/blobs/", Fault.RESET, times=99)
    with client() as registry, pytest.raises(RegistryError, match="4 times in a row"):
        download(registry, fake, descriptor)


def test_failures_are_forgiven_while_it_gets_on(fake: FakeRegistry) -> None:
    """Each try brings half of what is left: many breaks, and more than a megabyte between the first ones."""
    data = BIG * 7
    descriptor = blob_of(fake, data)
    fake.fail("GET", "/blobs/", Fault.TRUNCATE, times=4)
    with client(attempts=2) as registry:
        assert download(registry, fake, descriptor) == data


def test_a_blob_that_is_not_wanted_any_more(fake: FakeRegistry) -> None:
    descriptor = blob_of(fake, BIG * 10)
    with client() as registry:
        with registry.blob(name(fake), descriptor) as stream:
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)
        assert registry.has_blob(name(fake), descriptor)  # and the client still works


def test_layers_side_by_side(fake: FakeRegistry) -> None:
    fake.auth = "bearer"
    blobs = [blob_of(fake, bytes([number]) * (1 << 20)) for number in range(12)]
    with client() as registry, ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda one: sha256(download(registry, fake, one)), blobs))
    assert results == [one.digest for one in blobs]
    assert fake.count("GET", "/token") == 1


def test_connections_are_kept() -> None:
    """Through challenges, redirects, bodies that nobody wants and pushes: one connection to each of the hosts."""
    with FakeRegistry(auth="bearer", redirect_blobs=True) as fake:
        fake.add_image("app", [b"x"])
        with client() as registry:
            for number in range(3):
                image = registry.resolve(name(fake), AMD64)
                download(registry, fake, image.manifest.layers[0])
                pushed = Descriptor(OCI_LAYER_GZIP, sha256(bytes([number])), 1)
                registry.push_blob(name(fake), pushed, lambda number=number: io.BytesIO(bytes([number])))  # type: ignore[misc]
                assert not registry.has_blob(name(fake, "other"), pushed)
        assert fake.connections == 2


# --- redirects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_credentials_do_not_follow_a_redirect(auth: str) -> None:
    with FakeRegistry(auth=auth, redirect_blobs=True) as fake:
        descriptor = blob_of(fake)
        fake.fail("GET", "/bucket/", Fault.TRUNCATE)
        credentials = FixedCredentials(fake.address, Credential(USER, PASSWORD))
        retrier = Retrier(RetryPolicy(), sleep=Sleeps())
        with Registry(RegistrySettings(stall_timeout_s=STALL_S), credentials, retrier) as registry:
            assert download(registry, fake, descriptor) == BIG
        assert len(fake.seen_by_storage) == 2
        assert not any(one.authorization for one in fake.seen_by_storage)
        assert fake.seen_by_storage[1].headers["range"].startswith("bytes=")


def test_credentials_do_not_come_back_from_a_redirect() -> None:
    """Home, a stranger, home again: the stranger must not choose what our credentials are used for."""
    with FakeRegistry(auth="basic", redirect_blobs=True) as fake:
        descriptor = blob_of(fake)
        home = {"Location": f"http://{fake.address}/v2/app/blobs/{descriptor.digest}"}
        fake.fail("GET", "/bucket/", Fault.REDIRECT, status=302, headers=home)
        credentials = FixedCredentials(fake.address, Credential(USER, PASSWORD))
        with Registry(credentials=credentials) as registry, pytest.raises(AuthError):
            download(registry, fake, descriptor)
        assert [one.authorization for one in fake.seen_by_storage] == [""]
        assert fake.seen[-2].authorization
        assert not fake.seen[-1].authorization


@pytest.mark.parametrize(
    ("location", "problem"),
    [("file:///etc/passwd", "not a plain http"), ("/v2/app/manifests/latest", "more than 5 redirects")],
)
def test_redirects_that_lead_nowhere(fake: FakeRegistry, location: str, problem: str) -> None:
    fake.fail("GET", "/manifests/", Fault.REDIRECT, status=302, headers={"Location": location}, times=9)
    with client() as registry, pytest.raises(RegistryError, match=problem):
        registry.resolve(name(fake), AMD64)


# --- mirrors ---------------------------------------------------------------------------------------------------------


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


# --- tags and pushing ------------------------------------------------------------------------------------------------


def test_tags_over_several_pages(fake: FakeRegistry) -> None:
    for tag in "edcba":
        fake.add_manifest("app", tag, b"{}")
    with client() as registry:
        assert registry.tags(name(fake)) == tuple("abcde")
        assert fake.count("GET", "/tags/list") == 3
        with pytest.raises(NotFoundError):
            registry.tags(name(fake, "nowhere"))


@pytest.mark.parametrize("chunk", [0, 1 << 20])
@pytest.mark.parametrize("auth", ["", "bearer", "basic"])
def test_push(auth: str, chunk: int) -> None:
    with FakeRegistry(auth=auth) as fake:
        credentials = FixedCredentials(fake.address, Credential(USER, PASSWORD))
        with Registry(RegistrySettings(push_chunk=chunk), credentials) as registry:
            descriptor = Descriptor(OCI_LAYER_GZIP, sha256(BIG), len(BIG))
            reference = name(fake, suffix=":new")
            assert not registry.has_blob(reference, descriptor)
            assert registry.push_blob(reference, descriptor, lambda: io.BytesIO(BIG)) is Pushed.UPLOADED
            assert fake.blobs[descriptor.digest] == BIG
            assert registry.push_blob(reference, descriptor, lambda: io.BytesIO(BIG)) is Pushed.PRESENT
            other = name(fake, "other")
            assert registry.push_blob(other, descriptor, lambda: io.BytesIO(BIG), "app") is Pushed.MOUNTED
            assert registry.push_blob(name(fake, "third"), descriptor, lambda: io.BytesIO(BIG), "x") is Pushed.UPLOADED
            assert registry.push_manifest(reference, b'{"a": 1}', OCI_MANIFEST) == sha256(b'{"a": 1}')
            assert fake.manifests["app", "new"] == (OCI_MANIFEST, b'{"a": 1}')


@pytest.mark.parametrize("chunk", [0, 1 << 20])
@pytest.mark.parametrize("fault", [Fault.RESET, Fault.STATUS])
@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "PATCH"])
def test_a_push_that_breaks_is_taken_up_again(fake: FakeRegistry, method: str, fault: Fault, chunk: int) -> None:
    fake.fail(method, "/blobs/", fault, status=503)
    descriptor = Descriptor(OCI_LAYER_GZIP, sha256(BIG), len(BIG))
    with client(push_chunk=chunk) as registry:
        assert registry.push_blob(name(fake), descriptor, lambda: io.BytesIO(BIG)) is Pushed.UPLOADED
    assert fake.blobs[descriptor.digest] == BIG


def test_a_push_that_the_registry_forgot_begins_afresh(fake: FakeRegistry) -> None:
    fake.fail("PATCH", "/blobs/", Fault.RESET)
    fake.fail("GET", "/uploads/", Fault.STATUS, status=404)
    descriptor = Descriptor(OCI_LAYER_GZIP, sha256(BIG), len(BIG))
    with client(push_chunk=1 << 20) as registry:
        assert registry.push_blob(name(fake), descriptor, lambda: io.BytesIO(BIG)) is Pushed.UPLOADED
    assert fake.count("POST", "/uploads/") == 2


def test_a_push_of_something_else_than_was_said(fake: FakeRegistry) -> None:
    wrong = Descriptor(OCI_LAYER_GZIP, sha256(b"that"), 4)
    with client() as registry, pytest.raises(RegistryError, match="DIGEST_INVALID"):
        registry.push_blob(name(fake), wrong, lambda: io.BytesIO(b"this"))


def test_a_registry_that_denies_the_push(fake: FakeRegistry) -> None:
    fake.fail("POST", "/uploads/", Fault.STATUS, status=403)
    with client() as registry, pytest.raises(AuthError, match="as planned"):
        registry.push_blob(name(fake), Descriptor(OCI_LAYER_GZIP, sha256(b"x"), 1), lambda: io.BytesIO(b"x"))


def test_no_time_is_lost_on_a_stall(fake: FakeRegistry) -> None:
    descriptor = blob_of(fake)
    fake.fail("GET", "/blobs/", Fault.STALL)
    began = time.monotonic()
    with client() as registry:
        download(registry, fake, descriptor)
    assert time.monotonic() - began < 20 * STALL_S
