"""Downloading from a registry that fails on purpose: everything arrives whole and once, and no password strays."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from imagebuild.errors import AuthError, RegistryError
from imagebuild.oci.manifest import Descriptor
from imagebuild.registry.credentials import Credential, FixedCredentials
from imagebuild.registry.registry import Registry
from imagebuild.registry.retry import Retrier, RetryPolicy
from imagebuild.registry.settings import RegistrySettings
from tests.fake_registry import (
    OCI_LAYER_GZIP,
    PASSWORD,
    USER,
    FakeRegistry,
    Fault,
    sha256,
)
from tests.registry_client import AMD64, BIG, PATIENT_S, STALL_S, Sleeps, blob_of, client, download, name


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


# --- blobs -------------------------------------------------------------------------------------------------------


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
    with client(stall_s=STALL_S if fault is Fault.STALL else PATIENT_S) as registry:
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


# --- redirects ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_credentials_do_not_follow_a_redirect(auth: str) -> None:
    with FakeRegistry(auth=auth, redirect_blobs=True) as fake:
        descriptor = blob_of(fake)
        fake.fail("GET", "/bucket/", Fault.TRUNCATE)
        credentials = FixedCredentials(fake.address, Credential(USER, PASSWORD))
        retrier = Retrier(RetryPolicy(), sleep=Sleeps())
        with Registry(RegistrySettings(stall_timeout_s=PATIENT_S), credentials, retrier) as registry:
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
