"""Image names: the grammar, Docker's short names, and that every name survives being shortened."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuild.errors import ImageNameError
from imagebuild.oci.reference import Reference, is_loopback

SHA256 = "sha256:" + "0123456789abcdef" * 4
SHA512 = "sha512:" + "0123456789abcdef" * 8


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("docker.io/a/b/c", "docker.io/a/b/c:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost", "docker.io/library/localhost:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("registry:5000", "docker.io/library/registry:5000"),
        ("registry:5000/app", "registry:5000/app:latest"),
        ("Registry/app", "Registry/app:latest"),
        ("ghcr.io/org/sub/app:v1", "ghcr.io/org/sub/app:v1"),
        ("127.0.0.1:5000/app:t", "127.0.0.1:5000/app:t"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("[2001:db8::1]/app", "[2001:db8::1]/app:latest"),
        (f"app@{SHA256}", f"docker.io/library/app@{SHA256}"),
        (f"app:tag@{SHA512}", f"docker.io/library/app:tag@{SHA512}"),
        ("a__b/c-d--e/f.g_h", "docker.io/a__b/c-d--e/f.g_h:latest"),
        ("app:_.-", "docker.io/library/app:_.-"),
        ("a" * 247, f"docker.io/library/{'a' * 247}:latest"),
        (f"r.io/{'0' * 64}", f"r.io/{'0' * 64}:latest"),
    ],
)
def test_names_are_completed(name: str, full: str) -> None:
    assert str(Reference.parse(name)) == full


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "empty"),
        ("docker.io/", "empty"),
        ("Busybox", "lower case"),
        ("r.io/a/Bc", "lower case"),
        ("a//b", "between two slashes"),
        ("a/", "at an end"),
        ("/a", "at an end"),
        ("-a", "begin and end"),
        ("a_", "begin and end"),
        ("a/..", "begin and end"),
        ("a/../b", "begin and end"),
        ("a___b", "one or two '_'"),
        ("a..b", "one '.'"),
        ("a b", "may hold only"),
        ("a\nb", "may hold only"),
        ("é", "may hold only"),
        ("a:", "no tag behind it"),
        ("a:.x", "not begin with"),
        ("a:x y", "may hold only letters"),
        ("a:" + "x" * 129, "129 characters"),
        ("a" * 256, "characters"),
        ("a@", "algorithm:hex"),
        ("a@md5:00", "not one of"),
        ("a@sha256:00", "64 hex digits, this one 2"),
        (f"a@{SHA256.upper().replace('SHA', 'sha')}", "lower case"),
        (f"a@{SHA256}@{SHA256}", "hex digits"),
        ("0" * 64, "image ID"),
        ("[::g]/a", "not a registry's host name"),
        ("[1:2]/a", "not an IPv6 address"),
        ("-x.io/a", "not a registry's host name"),
        ("r.io:0/a", "not a port"),
        ("r.io:65536/a", "not a port"),
        ("r.io:" + "9" * 5000 + "/a", "not a port"),
        ("r.io:x/a", "not a registry's host name"),
        ("https://r.io/a", "no http://"),
        ("user:pw@r.io/a", "algorithm:hex"),
    ],
)
def test_a_bad_name_says_what_is_wrong(name: str, problem: str) -> None:
    with pytest.raises(ImageNameError) as caught:
        Reference.parse(name)
    assert problem in caught.value.cause
    assert str(caught.value).isprintable()  # what a stranger typed must not drive the terminal


def test_a_digest_beats_a_tag() -> None:
    reference = Reference.parse(f"app:old@{SHA256}")
    assert (reference.tag, reference.digest, reference.target) == ("old", SHA256, SHA256)
    assert Reference.parse("app").target == "latest"
    assert Reference.parse("app", default_tag=None).tag is None


@pytest.mark.parametrize(
    ("name", "familiar"),
    [
        ("docker.io/library/busybox", "busybox:latest"),
        ("docker.io/user/app:1", "user/app:1"),
        ("docker.io/library/a/b", "library/a/b:latest"),
        ("docker.io/ex.com/app", "docker.io/ex.com/app:latest"),
        ("docker.io/localhost/app", "docker.io/localhost/app:latest"),
        (f"docker.io/library/{'0' * 64}", f"library/{'0' * 64}:latest"),
        ("quay.io/library/app", "quay.io/library/app:latest"),
        (f"busybox:1@{SHA256}", f"busybox:1@{SHA256}"),
    ],
)
def test_familiar(name: str, familiar: str) -> None:
    assert Reference.parse(name).familiar() == familiar


@pytest.mark.parametrize(
    ("registry", "loopback"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("LocalHost", True),
        ("127.0.0.1", True),
        ("127.9.9.9:80", True),
        ("[::1]:5000", True),
        ("127.0.0.1.example.com", False),
        ("localhost.example.com", False),
        ("128.0.0.1", False),
        ("0.0.0.0", False),
        ("[::2]", False),
        ("docker.io", False),
    ],
)
def test_only_this_machine_is_loopback(registry: str, loopback: bool) -> None:
    assert is_loopback(registry) is loopback


_word = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
_component = st.tuples(
    _word, st.lists(st.tuples(st.sampled_from([".", "_", "__", "-", "---"]), _word), max_size=2)
).map(lambda parts: parts[0] + "".join(separator + word for separator, word in parts[1]))
_REGISTRIES = ("docker.io", "index.docker.io", "localhost", "r.example:5000", "[::1]:1", "10.0.0.1", "UP")
_registry = st.sampled_from(_REGISTRIES)
_tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
# A first component with a dot would be read as a registry, so that only names with one have dots there.
_names = st.builds(
    lambda registry, path, tag, digest: "/".join([registry, *path] if registry else path) + tag + digest,
    _registry | st.just(""),
    st.tuples(_word, st.lists(_component, max_size=3)).map(lambda parts: [parts[0], *parts[1]]),
    _tag.map(lambda tag: f":{tag}") | st.just(""),
    st.sampled_from(["", f"@{SHA256}", f"@{SHA512}"]),
)


@given(_names)
def test_every_name_survives_its_full_and_its_familiar_form(name: str) -> None:
    reference = Reference.parse(name)
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar()) == reference


@given(st.text(max_size=40) | st.text("ab/:@.-_[]0A ", max_size=40))
def test_any_text_is_a_name_or_an_image_name_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except ImageNameError:
        return
    assert Reference.parse(str(reference)) == reference
