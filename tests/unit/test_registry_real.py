"""The client against Debian's docker-registry, with skopeo as second opinion: plain, Basic, TLS."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagebuild.errors import AuthError, NotFoundError, RegistryError
from imagebuild.oci.manifest import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor
from imagebuild.oci.platforms import Platform
from imagebuild.oci.reference import Reference
from imagebuild.registry.credentials import Credential, CredentialFiles, FixedCredentials
from imagebuild.registry.registry import Registry
from imagebuild.registry.settings import RegistrySettings
from imagebuild.registry.upload import Pushed
from tests.fake_registry import describe, sha256
from tests.registry_fixture import CA_FILE, PASSWORD, USER, make_certificate, running_registry

AMD64 = Platform("linux", "amd64")
LAYERS = [gzip.compress(hashlib.shake_256(bytes([number])).digest(1 << 20), 1, mtime=0) for number in range(3)]
DIFF_IDS = [sha256(gzip.decompress(layer)) for layer in LAYERS]
ROOTFS = {"type": "layers", "diff_ids": DIFF_IDS}
CONFIG = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": ROOTFS}).encode()
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": describe(OCI_CONFIG, CONFIG),
        "layers": [describe(f"{OCI_LAYER}+gzip", layer) for layer in LAYERS],
    }
).encode()
ANONYMOUS = CredentialFiles(())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_registry(tmp_path_factory.mktemp("plain")) as address:
        yield address


def push(registry: Registry, reference: Reference) -> list[Pushed]:
    outcomes = []
    for media_type, blob in [(OCI_CONFIG, CONFIG), *((f"{OCI_LAYER}+gzip", layer) for layer in LAYERS)]:
        descriptor = Descriptor(media_type, sha256(blob), len(blob))
        outcomes.append(registry.push_blob(reference, descriptor, lambda blob=blob: io.BytesIO(blob)))  # type: ignore[misc]
    assert registry.push_manifest(reference, MANIFEST, OCI_MANIFEST) == sha256(MANIFEST)
    return outcomes


def pull(registry: Registry, reference: Reference) -> list[bytes]:
    image = registry.resolve(reference, AMD64)
    assert image.digest == sha256(MANIFEST)

    def download(layer: Descriptor) -> bytes:
        with registry.blob(reference, layer) as stream:
            return b"".join(stream)

    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(download, image.manifest.layers))


@pytest.mark.parametrize("chunk", [0, 300_000])
def test_what_is_pushed_comes_back(plain: str, chunk: int) -> None:
    reference = Reference.parse(f"{plain}/team/app{chunk}:v1")
    with Registry(RegistrySettings(push_chunk=chunk), ANONYMOUS) as registry:
        assert push(registry, reference) == [Pushed.UPLOADED] * 4
        assert push(registry, reference) == [Pushed.PRESENT] * 4
        assert pull(registry, reference) == LAYERS
        assert pull(registry, Reference.parse(f"{plain}/team/app{chunk}@{sha256(MANIFEST)}")) == LAYERS
        assert registry.digest(reference) == sha256(MANIFEST)
        layer = Descriptor(f"{OCI_LAYER}+gzip", sha256(LAYERS[0]), len(LAYERS[0]))
        other = Reference.parse(f"{plain}/other{chunk}")
        assert registry.push_blob(other, layer, lambda: io.BytesIO(b""), f"team/app{chunk}") is Pushed.MOUNTED
        assert registry.has_blob(other, layer)


def test_tags_and_indexes(plain: str) -> None:
    entries = [describe(OCI_MANIFEST, MANIFEST, platform={"os": "linux", "architecture": "amd64"})]
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    with Registry(credentials=ANONYMOUS) as registry:
        for tag in ("a", "b", "c"):
            push(registry, Reference.parse(f"{plain}/tagged:{tag}"))
        reference = Reference.parse(f"{plain}/tagged:multi")
        registry.push_manifest(reference, index, OCI_INDEX)
        assert registry.resolve(reference, AMD64).index_digest == sha256(index)
        assert pull(registry, reference) == LAYERS
        assert registry.tags(reference) == ("a", "b", "c", "multi")


def test_what_is_not_there(plain: str) -> None:
    with Registry(credentials=ANONYMOUS) as registry:
        with pytest.raises(NotFoundError, match="manifest unknown"):
            registry.resolve(Reference.parse(f"{plain}/nowhere"), AMD64)
        with pytest.raises(NotFoundError):
            registry.tags(Reference.parse(f"{plain}/nowhere"))
        missing = Descriptor(OCI_LAYER, sha256(b"missing"), 7)
        with registry.blob(Reference.parse(f"{plain}/nowhere"), missing) as stream, pytest.raises(NotFoundError):
            next(stream)
        with pytest.raises(RegistryError, match="DIGEST_INVALID"):
            registry.push_blob(Reference.parse(f"{plain}/x"), missing, lambda: io.BytesIO(b"another"))


def test_basic_authentication(tmp_path: Path) -> None:
    with running_registry(tmp_path, auth="basic") as address:
        reference = Reference.parse(f"{address}/app:v1")
        with Registry(credentials=FixedCredentials(address, Credential(USER, PASSWORD))) as registry:
            push(registry, reference)
            assert pull(registry, reference) == LAYERS
        with Registry(credentials=ANONYMOUS) as registry, pytest.raises(AuthError, match=f"docker login {address}"):
            registry.resolve(reference, AMD64)
        wrong = FixedCredentials(address, Credential(USER, "wrong"))
        refusal = "it refuses the credentials from the caller"
        with Registry(credentials=wrong) as registry, pytest.raises(AuthError, match=refusal):
            registry.resolve(reference, AMD64)


def test_tls(tmp_path: Path) -> None:
    with running_registry(tmp_path, tls=True) as address:
        reference = Reference.parse(f"{address}/app:v1")
        with Registry(RegistrySettings(ca_files={address: tmp_path / CA_FILE}), ANONYMOUS) as registry:
            push(registry, reference)
            assert pull(registry, reference) == LAYERS
        with Registry(RegistrySettings(insecure=frozenset({address})), ANONYMOUS) as registry:
            assert pull(registry, reference) == LAYERS
        untrusted = "not trusted.*set ca_file"
        with Registry(credentials=ANONYMOUS) as registry, pytest.raises(RegistryError, match=untrusted):
            registry.resolve(reference, AMD64)
        # Its certificate is for 127.0.0.1 and localhost, and for no other address.
        elsewhere = address.replace("127.0.0.1", "127.0.0.1.nip.invalid")
        with Registry(RegistrySettings(), ANONYMOUS) as registry, pytest.raises(RegistryError):
            registry.resolve(Reference.parse(f"{elsewhere}/app:v1"), AMD64)
        with pytest.raises(RegistryError, match="expected a PEM file"):
            Registry(RegistrySettings(ca_files={address: tmp_path / "htpasswd"}), ANONYMOUS)


def test_tls_is_not_spoken_by_a_plain_registry(plain: str, tmp_path: Path) -> None:
    make_certificate(tmp_path)
    settings = RegistrySettings(ca_files={plain: tmp_path / CA_FILE})
    with Registry(settings, ANONYMOUS) as registry, pytest.raises(RegistryError, match="does not speak TLS"):
        registry.resolve(Reference.parse(f"{plain}/app"), AMD64)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_agrees(plain: str, tmp_path: Path) -> None:
    """What we push skopeo reads, and what skopeo pushes, as Docker schema 2 too, we read."""

    def skopeo(*words: str) -> bytes:
        command = ["skopeo", "--insecure-policy", *words]
        return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout

    reference = Reference.parse(f"{plain}/judged:ours")
    with Registry(credentials=ANONYMOUS) as registry:
        push(registry, reference)
        seen = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{reference}"))
        assert (seen["Digest"], seen["Layers"]) == (sha256(MANIFEST), [sha256(layer) for layer in LAYERS])
        layout = f"dir:{tmp_path}/copy"
        skopeo("copy", "--src-tls-verify=false", f"docker://{reference}", layout)
        theirs = f"{plain}/judged:theirs"
        skopeo("copy", "--dest-tls-verify=false", "--format", "v2s2", layout, f"docker://{theirs}")
        image = registry.resolve(Reference.parse(theirs), AMD64)
        assert image.manifest.media_type.startswith("application/vnd.docker.")
        assert image.config.diff_ids == tuple(DIFF_IDS)
