"""What the registry tests share: clients that do not wait, and names and blobs in a fake registry."""

from __future__ import annotations

import hashlib

from imagebuild.oci.manifest import Descriptor
from imagebuild.oci.platforms import Platform
from imagebuild.oci.reference import Reference
from imagebuild.registry.credentials import CredentialFiles
from imagebuild.registry.registry import Registry
from imagebuild.registry.retry import Retrier, RetryPolicy
from imagebuild.registry.settings import RegistrySettings
from tests.fake_registry import OCI_LAYER_GZIP, FakeRegistry

AMD64 = Platform("linux", "amd64")
STALL_S = 0.3  # for tests of servers that stand still; any server does when the machine is busy
PATIENT_S = 60.0
BIG = hashlib.shake_256(b"big").digest(3 << 20)


class Sleeps(list[float]):
    """Notes the pauses instead of taking them."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def client(sleeps: Sleeps | None = None, attempts: int = 4, stall_s: float = PATIENT_S, **settings: object) -> Registry:
    chosen = RegistrySettings(stall_timeout_s=stall_s, connect_timeout_s=30, **settings)  # type: ignore[arg-type]
    retrier = Retrier(RetryPolicy(attempts=attempts), sleep=sleeps if sleeps is not None else Sleeps())
    return Registry(chosen, CredentialFiles(()), retrier)


def name(fake: FakeRegistry, repository: str = "app", suffix: str = "") -> Reference:
    return Reference.parse(f"{fake.address}/{repository}{suffix}")


def blob_of(fake: FakeRegistry, data: bytes = BIG) -> Descriptor:
    return Descriptor(OCI_LAYER_GZIP, fake.add_blob(data), len(data))


def download(registry: Registry, fake: FakeRegistry, descriptor: Descriptor) -> bytes:
    with registry.blob(name(fake), descriptor) as stream:
        return b"".join(stream)
