"""The HTTP side of ``tests.fake_registry``: answering as a registry, and spoiling answers as it is told."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from tests.fake_registry import FakeRegistry

STORAGE_HOST = "127.0.0.2"  # loopback, and yet another host than 127.0.0.1: the whole of 127.0.0.0/8 is ours
DRIP_S = 0.05  # between the bytes of a dripping answer
USER, PASSWORD, IDENTITY_TOKEN = "user", "pass:word", "identity"


class Fault(Enum):
    """What goes wrong with one answer."""

    STATUS = auto()  # another status, with headers
    RESET = auto()  # the connection is torn down in place of an answer
    TRUNCATE = auto()  # the connection ends cleanly, half of the announced body unsent
    RESET_MIDWAY = auto()  # ... or is torn down there
    STALL = auto()  # silence at that point
    DRIP = auto()  # a byte now and then, faster than any timeout between two bytes
    SHORT = auto()  # the whole answer is complete and too short
    LONG = auto()  # ... too long
    ENDLESS = auto()  # more than was asked for, with no length announced
    CORRUPT = auto()  # a bit is wrong
    IGNORE_RANGE = auto()  # 200 and everything
    WRONG_RANGE = auto()  # 206 and another part
    REDIRECT = auto()  # to ``location``


@dataclass
class Plan:
    """Which answers to spoil, and how."""

    method: str
    path: re.Pattern[str]
    fault: Fault
    times: int
    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def authorization(self) -> str:
        """The Authorization header, empty if there was none."""
        return self.headers.get("authorization", "")


def sha256(data: bytes) -> str:
    """The digest of ``data``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    registry: FakeRegistry
    is_storage: bool

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: connections that a client drops are what many tests are about."""


def serve(host: str, registry: FakeRegistry, is_storage: bool) -> _Server:
    """Serve on a free port of ``host``, in a thread of its own."""
    server = _Server((host, 0), _Handler)
    server.registry, server.is_storage = registry, is_storage
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    _MANIFEST = re.compile(r"/v2/(.+)/manifests/([^/]+)")
    _BLOB = re.compile(r"/v2/(.+)/blobs/([^/]+)")
    _UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/([^/]*)")
    _TAGS = re.compile(r"/v2/(.+)/tags/list")

    def setup(self) -> None:
        super().setup()
        self.server.registry.connections += 1
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        self._dispatch()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET

    def _dispatch(self) -> None:
        registry, path = self.server.registry, self.path
        plan = registry.plan_for(self.command, path)
        if plan and plan.fault is Fault.RESET:
            self._tear_down()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seen = Seen(self.command, path, {name.lower(): value for name, value in self.headers.items()}, body)
        (registry.seen_by_storage if self.server.is_storage else registry.seen).append(seen)
        if plan and plan.fault is Fault.STATUS:
            self._answer(plan.status, b'{"errors":[{"code":"FAULT","message":"as planned\\u001b[31m"}]}', plan.headers)
        elif plan and plan.fault is Fault.REDIRECT:
            self._answer(plan.status, b"", plan.headers)
        elif self.server.is_storage:
            self._send_blob(urlsplit(path).path.rpartition("/")[2], plan)
        elif path.startswith("/token"):
            self._token(seen)
        elif not self._authorized(seen):
            self._challenge()
        else:
            self._route(seen, plan)

    def _route(self, seen: Seen, plan: Plan | None) -> None:
        path = urlsplit(seen.path).path
        if path == "/v2/":
            self._answer(200, b"{}")
        elif match := self._UPLOAD.fullmatch(path):
            self._upload(match[1], match[2], seen)
        elif match := self._BLOB.fullmatch(path):
            self._blob(match[1], match[2], plan)
        elif match := self._MANIFEST.fullmatch(path):
            self._manifest(match[1], match[2], seen, plan)
        elif match := self._TAGS.fullmatch(path):
            self._tags(match[1], seen)
        else:
            self._not_found("NAME_UNKNOWN")

    # --- reading -----------------------------------------------------------------------------------------------------

    def _manifest(self, repository: str, target: str, seen: Seen, plan: Plan | None) -> None:
        registry = self.server.registry
        if seen.method == "PUT":
            registry.add_manifest(repository, target, seen.body, seen.headers["content-type"])
            self._answer(201, b"", {"Docker-Content-Digest": sha256(seen.body)})
            return
        if (repository, target) not in registry.manifests:
            self._not_found("MANIFEST_UNKNOWN")
            return
        media_type, raw = registry.manifests[repository, target]
        headers = {"Content-Type": media_type, "Docker-Content-Digest": sha256(raw)}
        self._answer(200, raw, headers | dict(plan.headers if plan else {}), plan)

    def _blob(self, repository: str, digest: str, plan: Plan | None) -> None:
        registry = self.server.registry
        if repository not in registry.repositories_of.get(digest, ()):
            self._not_found("BLOB_UNKNOWN")
        elif registry.redirect_blobs and self.command == "GET":
            self._answer(307, b"", {"Location": f"http://{registry.storage_address}/bucket/{digest}"})
        else:
            self._send_blob(digest, plan)

    def _send_blob(self, digest: str, plan: Plan | None) -> None:
        data = self.server.registry.blobs[digest]
        fault = plan.fault if plan else None
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not wanted or fault is Fault.IGNORE_RANGE:
            self._answer(200, data, {}, plan)
            return
        start = int(wanted[1]) + (7 if fault is Fault.WRONG_RANGE else 0)
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self._answer(206, data[start:], headers, plan)

    def _tags(self, repository: str, seen: Seen) -> None:
        tags = sorted(
            tag for name, tag in self.server.registry.manifests if name == repository and not tag.startswith("sha256:")
        )
        if not tags:
            self._not_found("NAME_UNKNOWN")
            return
        last = parse_qs(urlsplit(seen.path).query).get("last", [""])[0]
        rest = [tag for tag in tags if tag > last]
        page = rest[: self.server.registry.page_size]
        link = f'</v2/{repository}/tags/list?last={page[-1]}&n=2>; rel="next"' if len(rest) > len(page) else ""
        self._answer(200, json.dumps({"name": repository, "tags": page}).encode(), {"Link": link} if link else {})

    # --- writing -----------------------------------------------------------------------------------------------------

    def _upload(self, repository: str, upload: str, seen: Seen) -> None:
        registry = self.server.registry
        query = parse_qs(urlsplit(seen.path).query)
        if seen.method == "POST":
            digest, source = query.get("mount", [""])[0], query.get("from", [""])[0]
            if digest and source in registry.repositories_of.get(digest, ()):
                registry.repositories_of[digest].add(repository)
                self._answer(201, b"")
                return
            upload = uuid.uuid4().hex
            registry.uploads[upload] = bytearray()
            self._answer(202, b"", self._place(repository, upload))
        elif upload not in registry.uploads:
            self._not_found("BLOB_UPLOAD_UNKNOWN")
        elif seen.method == "GET":
            self._answer(204, b"", self._place(repository, upload))
        elif seen.method == "PATCH":
            self._append(repository, upload, seen)
        else:
            self._commit(repository, upload, seen, query["digest"][0])

    def _place(self, repository: str, upload: str) -> dict[str, str]:
        size = len(self.server.registry.uploads[upload])
        location = f"/v2/{repository}/blobs/uploads/{upload}?_state={size}"  # relative and changing: both are allowed
        return {"Location": location, "Range": f"0-{max(0, size - 1)}"}

    def _append(self, repository: str, upload: str, seen: Seen) -> None:
        content = self.server.registry.uploads[upload]
        if int(seen.headers["content-range"].partition("-")[0]) != len(content):
            self._answer(416, b"", self._place(repository, upload))
            return
        content += seen.body
        self._answer(202, b"", self._place(repository, upload))

    def _commit(self, repository: str, upload: str, seen: Seen, digest: str) -> None:
        data = bytes(self.server.registry.uploads.pop(upload)) + seen.body
        if sha256(data) != digest:
            self._answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"no match"}]}')
            return
        self.server.registry.add_blob(data, repository)
        self._answer(201, b"", {"Docker-Content-Digest": digest})

    # --- authentication ----------------------------------------------------------------------------------------------

    def _authorized(self, seen: Seen) -> bool:
        registry = self.server.registry
        scheme, _, value = seen.authorization.partition(" ")
        if not registry.auth:
            return True
        if scheme == "Bearer":
            return "bearer" in registry.auth and value in registry.tokens
        return scheme == "Basic" and "basic" in registry.auth and seen.authorization == basic(USER, PASSWORD)

    def _challenge(self) -> None:
        registry = self.server.registry
        bearer = f'Bearer realm="http://{registry.address}/token",service="fake, inc"'
        headers = {
            "basic": 'Basic realm="fake"',
            "bearer": bearer,
            "bearer+basic": f'Negotiate, Basic realm="a, Bearer realm=\\"x\\"" , {bearer}',
            "negotiate": "Negotiate",
        }
        body = b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}'
        self._answer(401, body, {"WWW-Authenticate": headers[registry.auth]})

    def _token(self, seen: Seen) -> None:
        registry = self.server.registry
        form = parse_qs(seen.body.decode() or urlsplit(seen.path).query)
        assert form["service"] == ["fake, inc"]
        known = (
            form.get("refresh_token") == [IDENTITY_TOKEN]
            if seen.method == "POST"
            else seen.authorization == basic(USER, PASSWORD) or (registry.anonymous_tokens and not seen.authorization)
        )
        if not known:
            self._answer(401, b"{}")
            return
        token = uuid.uuid4().hex
        registry.tokens.add(token)
        name = "access_token" if seen.method == "POST" else "token"
        self._answer(200, json.dumps({name: token, "expires_in": 300}).encode())

    # --- answering ---------------------------------------------------------------------------------------------------

    def _not_found(self, code: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": "no such thing"}]}).encode()
        self._answer(404, body)

    def _answer(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, plan: Plan | None = None
    ) -> None:
        fault = plan.fault if plan else None
        announced, body = _spoil(fault, body)
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if fault is Fault.ENDLESS:
            self.close_connection = True
        elif status != 204:
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        if self.command != "HEAD":
            self._send(body, fault)

    def _send(self, body: bytes, fault: Fault | None) -> None:
        half = len(body) // 2
        if fault in (Fault.TRUNCATE, Fault.RESET_MIDWAY, Fault.STALL):
            self.wfile.write(body[:half])
        if fault is Fault.TRUNCATE:
            self.close_connection = True
        elif fault is Fault.RESET_MIDWAY:
            time.sleep(0.05)  # a reset overtakes data that the client has not read
            self._tear_down()
        elif fault is Fault.STALL:
            self.server.registry.released.wait()
            self.close_connection = True
        elif fault is Fault.DRIP:
            for position in range(len(body)):
                if self.server.registry.released.wait(DRIP_S):
                    break
                self.wfile.write(body[position : position + 1])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _tear_down(self) -> None:
        """Send RST rather than FIN: linger on, for no time."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
        self.wfile = _Void()  # type: ignore[assignment]


class _Void:
    """Takes the flush that http.server makes after a connection was torn down."""

    closed = True

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _spoil(fault: Fault | None, body: bytes) -> tuple[int, bytes]:
    """The announced length and the body, with a fault of content put in."""
    changes: dict[Fault, Callable[[bytes], bytes]] = {
        Fault.SHORT: lambda data: data[:-1],
        Fault.LONG: lambda data: data + b"!",
        Fault.ENDLESS: lambda data: data * 3,
        Fault.CORRUPT: lambda data: bytes([data[0] ^ 1]) + data[1:],
    }
    changed = changes[fault](body) if fault in changes else body
    return len(changed), changed


def basic(user: str, password: str) -> str:
    """The value of a Basic Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
