"""The client behind a proxy that the environment names: for plain HTTP, and by CONNECT for TLS."""

from __future__ import annotations

import http.client
import http.server
import io
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from imagebuild.oci.platforms import Platform
from imagebuild.oci.reference import Reference
from imagebuild.registry.credentials import CredentialFiles
from imagebuild.registry.registry import Registry
from imagebuild.registry.retry import Retrier, RetryPolicy
from imagebuild.registry.settings import RegistrySettings
from tests.fake_registry import FakeRegistry
from tests.registry_fixture import CA_FILE, running_registry

HOST = "registry.test"  # no resolver knows it: only the proxy does, and says it is this machine


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        self.asked.append(f"GET {urlsplit(self.path).netloc}")
        target = urlsplit(self.path)
        connection = http.client.HTTPConnection("127.0.0.1", target.port or 80)
        connection.request("GET", self.path.partition(target.netloc)[2], headers=dict(self.headers.items()))
        answer = connection.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        connection.close()

    def do_CONNECT(self) -> None:
        self.asked.append(f"CONNECT {self.path}")
        with socket.create_connection(("127.0.0.1", int(self.path.rpartition(":")[2]))) as target:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: target, target: self.connection}
            while True:
                for source in select.select(list(ends), [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        self.close_connection = True
                        return
                    ends[source].sendall(data)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a running proxy, named by the environment, was asked for."""
    _Proxy.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, url)
    monkeypatch.setenv("no_proxy", "")
    yield _Proxy.asked
    server.shutdown()
    server.server_close()


def resolve(registry_name: str, settings: RegistrySettings) -> list[bytes]:
    reference = Reference.parse(f"{registry_name}/app")
    retrier = Retrier(RetryPolicy(attempts=1))
    with Registry(settings, CredentialFiles(()), retrier) as registry:
        image = registry.resolve(reference, Platform("linux", "amd64"))
        with registry.blob(reference, image.manifest.layers[0]) as stream:
            return list(stream)


def test_plain_http_through_a_proxy(asked: list[str]) -> None:
    with FakeRegistry() as fake:
        packed = fake.add_image("app", [b"layer"]).layers
        name = f"{HOST}:{fake.address.rpartition(':')[2]}"
        settings = RegistrySettings(mirrors={name: (f"http://{name}",)})
        assert resolve(name, settings) == list(packed)
        assert set(asked) == {f"GET {name}"}


def test_this_machine_needs_no_proxy(asked: list[str]) -> None:
    with FakeRegistry() as fake:
        packed = fake.add_image("app", [b"layer"]).layers
        assert resolve(fake.address, RegistrySettings()) == list(packed)
        assert asked == []


@pytest.mark.parametrize("trust", ["authority", "anyone"])
def test_tls_through_a_proxy(asked: list[str], tmp_path: Path, trust: str) -> None:
    with running_registry(tmp_path, tls=True) as address, FakeRegistry() as source:
        image = source.add_image("app", [b"layer"])
        name = f"{HOST}:{address.rpartition(':')[2]}"
        _push(source, address, tmp_path)
        authority = RegistrySettings(ca_files={name: tmp_path / CA_FILE})
        settings = authority if trust == "authority" else RegistrySettings(insecure=frozenset({name}))
        assert resolve(name, settings) == [image.layers[0]]
        assert set(asked) == {f"CONNECT {name}"}


def _push(source: FakeRegistry, address: str, folder: Path) -> None:
    """Copy the image from the fake registry to the one behind TLS, without the proxy."""
    settings = RegistrySettings(ca_files={address: folder / CA_FILE})
    with Registry(settings, CredentialFiles(())) as registry:
        there, here = Reference.parse(f"{address}/app"), Reference.parse(f"{source.address}/app")
        image = registry.resolve(here, Platform("linux", "amd64"))
        for descriptor in (image.manifest.config, *image.manifest.layers):
            data = source.blobs[descriptor.digest]
            registry.push_blob(there, descriptor, lambda data=data: io.BytesIO(data))  # type: ignore[misc]
        registry.push_manifest(there, image.manifest.raw, image.manifest.media_type)
