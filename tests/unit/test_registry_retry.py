"""When to try again, where to go, and what a URL may lead to: the pure parts of the client."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuild.errors import RegistryError
from imagebuild.registry.client import error_text
from imagebuild.registry.endpoint import candidates, home
from imagebuild.registry.origin import Origin, follow, proxies_for
from imagebuild.registry.registry import next_page
from imagebuild.registry.retry import RetryPolicy, parse_retry_after
from imagebuild.registry.settings import RegistrySettings

NOW = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 400, 999999999999.0),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Sun, 06 Nov 1994 08:49:27 GMT", 0.0),
        ("Sunday, 06-Nov-94 08:49:47 GMT", 10.0),
        ("Sun, 99 Nov 1994 08:49:47 GMT", None),
        ("²", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


def test_pauses_double_up_to_a_bound_and_end() -> None:
    policy = RetryPolicy(attempts=9, first_pause_s=1, longest_pause_s=10)
    assert [policy.pause(failures, None, 1.0) for failures in range(1, 10)] == [1, 2, 4, 8, 10, 10, 10, 10, None]
    assert policy.pause(1, None, 0.0) == 0.5
    assert RetryPolicy(attempts=10**9).pause(10**6, None, 1.0) == 10  # no overflow


def test_a_servers_wish_is_the_least_and_has_a_bound() -> None:
    policy = RetryPolicy(first_pause_s=1, max_retry_after_s=60)
    assert policy.pause(1, 30, 0.0) == 30.5
    assert policy.pause(1, 61, 0.0) is None


@pytest.mark.parametrize(
    ("source", "location", "target"),
    [
        ("https://a/v2/x", "/y", "https://a/y"),
        ("https://a/v2/x", "https://b/y?z", "https://b/y?z"),
        ("https://a/v2/x", "//b/y", "https://b/y"),
        ("http://a/x", "https://a/x", "https://a/x"),
    ],
)
def test_following(source: str, location: str, target: str) -> None:
    assert follow(source, location) == target


@pytest.mark.parametrize("location", ["http://a/", "file:///etc/passwd", "ftp://a/", "https://u:p@a/", "https://a:x/"])
def test_what_is_not_followed(location: str) -> None:
    with pytest.raises(RegistryError):
        follow("https://a/", location)


def test_origins() -> None:
    assert Origin.of("https://A.example/x") == Origin.of("https://a.EXAMPLE:443/y")
    assert Origin.of("https://a/") != Origin.of("http://a/")
    assert Origin.of("https://a/") != Origin.of("https://a:444/")
    assert Origin.of("http://[::1]:5000/").is_secure
    assert not Origin.of("http://10.0.0.1/").is_secure
    assert str(Origin.of("http://[::1]:5000/")) == "http://[::1]:5000"


def test_proxies_come_from_the_environment_but_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    assert proxies_for("https://r.example/")["https"] == "http://proxy:3128"
    assert proxies_for("https://inside.example/") == {}
    assert proxies_for("https://127.0.0.1:5000/") == {}
    assert proxies_for("https://[::1]/") == {}


def test_candidates() -> None:
    settings = RegistrySettings(
        mirrors={"docker.io": ("http://m1:5000", "m2/proxy/hub/", "127.0.0.1:1")},
        insecure=frozenset({"weak:80"}),
        ca_files={"localhost:5000": Path("/ca")},
    )
    hub = candidates("docker.io", settings)
    assert [(one.host, one.schemes, one.prefix) for one in hub] == [
        ("m1:5000", ("http",), ""),
        ("m2", ("https",), "proxy/hub/"),
        ("127.0.0.1:1", ("http", "https"), ""),
        ("registry-1.docker.io", ("https",), ""),
    ]
    assert [one.is_mirror for one in hub] == [True, True, True, False]
    assert not home("docker.io", settings).is_mirror
    assert candidates("weak:80", settings)[0].schemes == ("https", "http")
    assert candidates("localhost:5000", settings)[0].schemes == ("https",)
    with pytest.raises(RegistryError, match="not a mirror"):
        candidates("x", RegistrySettings(mirrors={"x": ("ftp://a",)}))


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b'{"errors":[{"code":"DENIED","message":"no"},{"code":"X"}]}', "DENIED: no; X"),
        (b'{"errors":[{"code":"A","message":"\\u001b[31m"}]}', r"A: \x1b[31m"),
        (b"<html>", ""),
        (b'{"errors":[7]}', ""),
        (b'{"errors":[]}', ""),
        (b"[" * 100000, ""),
    ],
)
def test_error_documents(raw: bytes, text: str) -> None:
    assert error_text(raw) == text


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("", ""),
        ('</v2/a/tags/list?n=1>; rel="next"', "/v2/a/tags/list?n=1"),
        ("</x>;rel=next", "/x"),
        ('</p>; rel="prev", </n>; title="t"; rel="next"', "/n"),
        ('</p>; rel="prev"', ""),
    ],
)
def test_next_page(link: str, target: str) -> None:
    assert next_page(link) == target
