"""A real registry for tests: Debian's docker-registry on a free port of loopback, as a context manager.

    with running_registry(tmp_path) as address:                    # plain HTTP
    with running_registry(tmp_path, auth="basic") as address:      # user USER, password PASSWORD
    with running_registry(tmp_path, tls=True) as address:          # authority in tmp_path / CA_FILE

Content stays in ``tmp_path``, so a second registry on the same folder finds what the first was given.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = "docker-registry"
CA_FILE = "ca.pem"
LOG_FILE = "registry.log"
USER, PASSWORD = "user", "secret:word"
# bcrypt, which is all that the registry takes, of PASSWORD at the lowest cost.
_HTPASSWD = f"{USER}:$2b$04$3ZvowcEHCfAVzKh7/prvr.Uq96to2BRGiyreLPVR8HYxJrvlvtuC.\n"

# What the certificate is for; a name that no resolver has is reached through a proxy.
_NAMES = "IP:127.0.0.1,DNS:localhost,DNS:registry.test"

_START_S = 120.0  # it takes 0.05 s on an idle machine
_STOP_S = 30.0
_LISTENING = re.compile(rb"listening on (127\.0\.0\.1:\d+)")


@contextlib.contextmanager
def running_registry(folder: Path, auth: str | None = None, tls: bool = False) -> Iterator[str]:
    """Run a registry and give its ``host:port``; the test is skipped where the program is missing."""
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"{PROGRAM} is not installed (apt install docker-registry)")
    config = folder / "registry.yml"
    # JSON is YAML.  A file rather than REGISTRY_* variables, each of which would be taken for a setting.
    config.write_text(json.dumps(_config(folder, auth, tls)))
    log = folder / LOG_FILE
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_die_with_parent(), PROGRAM, "serve", str(config)],
            env={"PATH": os.environ["PATH"]},  # no REGISTRY_*, no OTEL_*
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _wait_for_address(process, log)
    finally:
        _stop(process)


def _config(folder: Path, auth: str | None, tls: bool) -> dict[str, object]:
    http: dict[str, object] = {"addr": "127.0.0.1:0", "secret": "for tests"}
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}, "delete": {"enabled": True}},
        "http": http,
    }
    if tls:
        certificate, key = make_certificate(folder)
        http["tls"] = {"certificate": str(certificate), "key": str(key)}
    if auth == "basic":
        passwords = folder / "htpasswd"
        passwords.write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test registry", "path": str(passwords)}}
    return config


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make an authority (``ca.pem``) and a certificate for all names in ``_NAMES``; the certificate and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    fresh = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split()
    authority = ["-keyout", "ca.key", "-out", CA_FILE, "-subj", "/CN=test authority"]
    leaf = ["-keyout", "server.key", "-out", "server.pem", "-subj", "/CN=127.0.0.1", "-CA", CA_FILE, "-CAkey", "ca.key"]
    names = [
        "-addext",
        f"subjectAltName={_NAMES}",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ]
    for command in ([*fresh, *authority], [*fresh, *leaf, *names]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "server.pem", folder / "server.key"


def _wait_for_address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if match := _LISTENING.search(log.read_bytes()):
            return match[1].decode()
        if process.poll() is not None:
            break
        time.sleep(0.01)
    pytest.fail(f"{PROGRAM} did not start: {log.read_text(errors='replace')[-2000:]}")


def _die_with_parent() -> list[str]:
    """A prefix that has the kernel end the registry when a test run is killed and cannot do it itself."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
