"""Pushing to a registry that fails on purpose, and listing tags."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import pytest

from imagebuild.errors import AuthError, NotFoundError, RegistryError
from imagebuild.oci.manifest import Descriptor
from imagebuild.registry.credentials import Credential, FixedCredentials
from imagebuild.registry.registry import Registry
from imagebuild.registry.settings import RegistrySettings
from imagebuild.registry.upload import Pushed
from tests.fake_registry import (
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    PASSWORD,
    USER,
    FakeRegistry,
    Fault,
    sha256,
)
from tests.registry_client import BIG, PATIENT_S, STALL_S, blob_of, client, download, name


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


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
    with client(stall_s=STALL_S) as registry:
        download(registry, fake, descriptor)
    assert time.monotonic() - began < PATIENT_S
