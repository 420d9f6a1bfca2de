"""Manifests, indexes, configs and platforms: what is understood, and that everything else is refused with its place."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuild.digest import digest_of, verify_bytes
from imagebuild.errors import ManifestError
from imagebuild.jsoncheck import MAX_DOCUMENT
from imagebuild.oci.imageconfig import check_pair, check_platform, parse_config
from imagebuild.oci.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    LAYER_TYPES,
    MAX_LAYERS,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Compression,
    Index,
    Manifest,
    parse_manifest,
)
from imagebuild.oci.platforms import Platform

DIGEST = "sha256:" + "ab" * 32
AMD64 = Platform("linux", "amd64")


def descriptor(media_type: str, **more: object) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": DIGEST, "size": 7} | more


def manifest_document(**more: object) -> dict[str, Any]:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG),
        "layers": [descriptor(f"{OCI_LAYER}+gzip")],
    }
    return document | more


def index_document(*platforms: object, **more: object) -> dict[str, Any]:
    entries = [descriptor(OCI_MANIFEST, platform=platform) for platform in platforms]
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries} | more


def parse(document: object, media_type: str = "") -> Manifest | Index:
    return parse_manifest(json.dumps(document).encode(), media_type)


def parsed_index(*platforms: object) -> Index:
    index = parse(index_document(*platforms))
    assert isinstance(index, Index)
    return index


def platform(text: str) -> dict[str, str]:
    os, architecture, *variant = text.split("/")
    return {"os": os, "architecture": architecture} | ({"variant": variant[0]} if variant else {})


# --- manifests and indexes -------------------------------------------------------------------------------------------


def test_an_oci_manifest() -> None:
    raw = json.dumps(manifest_document(annotations={"a": "b"})).encode()
    manifest = parse_manifest(raw, f"{OCI_MANIFEST}; charset=utf-8")
    assert isinstance(manifest, Manifest)
    assert (manifest.config.digest, manifest.config.size) == (DIGEST, 7)
    assert [layer.compression for layer in manifest.layers] == [Compression.GZIP]
    assert manifest.annotations == {"a": "b"}
    assert manifest.raw is raw
    assert manifest.digest == digest_of(raw)
    assert len({manifest, manifest}) == 1  # hashable, so usable as a key


def test_a_docker_manifest() -> None:
    document = manifest_document(
        mediaType=DOCKER_MANIFEST, config=descriptor(DOCKER_CONFIG), layers=[descriptor(f"{DOCKER_LAYER}.gzip")]
    )
    manifest = parse(document, DOCKER_MANIFEST)
    assert isinstance(manifest, Manifest)
    assert manifest.media_type == DOCKER_MANIFEST


@pytest.mark.parametrize("media_type", sorted(LAYER_TYPES))
def test_every_layer_type_is_taken(media_type: str) -> None:
    manifest = parse(manifest_document(layers=[descriptor(media_type)]))
    assert isinstance(manifest, Manifest)
    assert manifest.layers[0].compression.value in media_type or manifest.layers[0].compression is Compression.NONE


def test_the_type_may_come_from_the_shape_alone() -> None:
    """OCI makes mediaType optional, and static file servers say octet-stream."""
    document = manifest_document()
    del document["mediaType"]
    assert isinstance(parse(document, "application/octet-stream"), Manifest)
    document = index_document()
    del document["mediaType"]
    assert isinstance(parse(document), Index)


def test_a_docker_list() -> None:
    index = parse(index_document(platform("linux/amd64"), mediaType=DOCKER_LIST), DOCKER_LIST)
    assert isinstance(index, Index)
    assert index.entries[0].platform == AMD64


def test_null_counts_as_absent() -> None:
    manifest = parse(manifest_document(layers=None, annotations=None))
    assert isinstance(manifest, Manifest)
    assert manifest.layers == ()


@pytest.mark.parametrize(
    ("document", "declared", "problem"),
    [
        ([], "", "expected an object"),
        ({}, "", "neither an image manifest nor an index"),
        (manifest_document(schemaVersion=3), "", "schemaVersion: expected 2"),
        (manifest_document(schemaVersion="2"), "", "schemaVersion: expected an integer"),
        (manifest_document(), OCI_INDEX, "contradicts the declared type"),
        (manifest_document(mediaType="text/html"), "", "neither an image manifest"),
        (manifest_document(manifests=[]), "", "manifests: has no place"),
        (index_document(layers=[]), "", "layers: has no place"),
        (index_document(config={}), OCI_INDEX, "config: has no place"),
        ({"schemaVersion": 1, "fsLayers": [], "history": []}, "", "schema 1"),
        (manifest_document(mediaType="application/vnd.docker.distribution.manifest.v1+prettyjws"), "", "schema 1"),
        ({"schemaVersion": 1}, "application/vnd.docker.distribution.manifest.v1+json", "schema 1"),
        (manifest_document(config=None), "", "config: missing"),
        (manifest_document(config=[]), "", "config: expected an object, found an array"),
        (manifest_document(config=descriptor("application/vnd.cncf.helm.config.v1+json")), "", "artifact"),
        (manifest_document(layers={}), "", "layers: expected an array"),
        (manifest_document(layers=[7]), "", "layers[0]: expected an object, found a number"),
        (manifest_document(layers=[descriptor("application/zip")]), "", "not a layer"),
        (manifest_document(layers=[descriptor(f"{OCI_LAYER}+gzip+encrypted")]), "", "layers[0].mediaType"),
        (manifest_document(layers=[descriptor(OCI_LAYER, size=-1)]), "", "layers[0].size: -1 is outside"),
        (manifest_document(layers=[descriptor(OCI_LAYER, size=1 << 63)]), "", "is outside"),
        (manifest_document(layers=[descriptor(OCI_LAYER, size=1.0)]), "", "expected an integer"),
        (manifest_document(layers=[descriptor(OCI_LAYER, size=True)]), "", "expected an integer, found a boolean"),
        (manifest_document(layers=[descriptor(OCI_LAYER, size=None)]), "", "layers[0].size: missing"),
        (manifest_document(layers=[descriptor(OCI_LAYER, digest="../../etc/passwd")]), "", "layers[0].digest"),
        (manifest_document(layers=[descriptor(OCI_LAYER, digest="sha256:" + "A" * 64)]), "", "lower case"),
        (manifest_document(layers=[descriptor("")]), "", "mediaType: missing"),
        (manifest_document(layers=[descriptor(OCI_LAYER)] * (MAX_LAYERS + 1)), "", f"{MAX_LAYERS} are allowed"),
        (manifest_document(annotations={"a": 1}), "", "expected a string, found a number"),
        (manifest_document(annotations={"a": "\ud800"}), "", "not valid Unicode"),
        (manifest_document(annotations={"a": "b\0"}), "", "NUL"),
        (index_document("amd64"), "", "manifests[0].platform: expected an object"),
    ],
)
def test_what_is_not_a_manifest_is_refused_with_its_place(document: object, declared: str, problem: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(document, declared)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":NaN}', "NaN"),
        (b'{"size":' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"layers":[],"layers":[]}', "occurs twice"),
        (b" " * (MAX_DOCUMENT + 1), "are allowed"),
    ],
)
def test_what_is_not_json_is_refused(raw: bytes, problem: str) -> None:
    with pytest.raises(ManifestError, match=problem):
        parse_manifest(raw)


_keys = st.sampled_from("schemaVersion mediaType config layers manifests digest size platform rootfs Env Cmd".split())
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([2, DIGEST]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=12,
)


@given(_json, st.dictionaries(_keys, _json))
def test_hostile_documents_only_ever_raise_manifest_error(value: object, fields: dict[str, object]) -> None:
    for document in (value, manifest_document(**fields), index_document(**fields), manifest_document(config=value)):
        raw = json.dumps(document).encode()
        for reader in (parse_manifest, parse_config):
            with contextlib.suppress(ManifestError):
                reader(raw)


# --- platforms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/amd64", "linux/amd64"),
        ("amd64", "linux/amd64"),
        ("x86_64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm/7", "linux/arm"),
        ("armhf", "linux/arm"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("Linux/AMD64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_platforms_have_one_normal_form(text: str, normal: str) -> None:
    assert str(Platform.parse(text)) == normal


@pytest.mark.parametrize("text", ["", "a/b/c/d", "linux/", "linux/a b", "/", "linux/amd64/\n"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(ManifestError, match="not a platform"):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("offered", "wanted", "chosen"),
    [
        (["linux/arm64", "linux/amd64"], "amd64", 1),
        (["linux/amd64", "linux/arm64/v8"], "arm64", 1),
        (["linux/arm64"], "linux/arm64/v8", 0),
        (["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", 1),
        (["linux/amd64", "linux/amd64/v2"], "linux/amd64/v3", 1),
        (["linux/amd64", "linux/amd64/v4"], "linux/amd64/v3", 0),
        (["linux/arm64/v8"], "linux/arm64/v8.2", 0),
        (["unknown/unknown", "linux/amd64"], "amd64", 1),
        (["linux/amd64", "linux/amd64"], "amd64", 0),
    ],
)
def test_the_best_of_what_is_offered(offered: list[str], wanted: str, chosen: int) -> None:
    index = parsed_index(*map(platform, offered))
    assert index.choose(Platform.parse(wanted), "app") is index.entries[chosen]


def test_a_missing_platform_lists_what_there_is() -> None:
    index = parsed_index(platform("linux/s390x"), platform("linux/arm/v6"), platform("unknown/unknown"))
    with pytest.raises(ManifestError, match=r"no image for linux/amd64 \(available: linux/arm/v6, linux/s390x\)"):
        index.choose(AMD64, "app")
    with pytest.raises(ManifestError, match="no image for linux/arm/v5"):  # a newer variant does not run
        index.choose(Platform.parse("linux/arm/v5"), "app")


def test_attestations_and_artifacts_are_no_images() -> None:
    document = index_document(platform("linux/amd64"))
    document["manifests"].insert(
        0,
        descriptor(
            OCI_MANIFEST,
            platform=platform("linux/amd64"),
            annotations={"vnd.docker.reference.type": "attestation-manifest"},
        ),
    )
    document["manifests"].append(descriptor("application/vnd.example.sbom+json", platform=platform("linux/arm64")))
    index = parse(document)
    assert isinstance(index, Index)
    assert index.choose(AMD64, "app") is index.entries[1]
    assert index.images() == (index.entries[1],)


def test_a_single_entry_without_platform_is_taken() -> None:
    """An OCI layout of one image names no platform; its config will."""
    index = parsed_index(None)
    assert index.choose(AMD64, "app") is index.entries[0]
    with pytest.raises(ManifestError, match="lists no image"):
        parsed_index(None, {}).choose(AMD64, "app")


# --- configs ---------------------------------------------------------------------------------------------------------


def test_a_config() -> None:
    document = {
        "architecture": "arm64",
        "variant": "v8",
        "os": "linux",
        "created": "2024-01-01T00:00:00Z",
        "config": {
            "Env": ["PATH=/bin"],
            "Entrypoint": [],
            "Cmd": "sh",
            "User": "1:1",
            "WorkingDir": "/w",
            "StopSignal": "SIGQUIT",
            "Volumes": {"/b": {}, "/a": {}},
            "ExposedPorts": {"80/tcp": {}},
            "Labels": {"k": "v"},
            "Healthcheck": {"Test": ["CMD", "true"], "Interval": 30_000_000_000, "Retries": 3},
            "Shell": None,
        },
        "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
        "history": [{"created_by": "ADD", "empty_layer": False}, {"created_by": "CMD", "empty_layer": True}],
    }
    config = parse_config(json.dumps(document).encode())
    run = config.run
    assert config.platform == Platform("linux", "arm64")
    assert config.diff_ids == (DIGEST,)
    assert (run.env, run.entrypoint, run.cmd, run.shell) == (("PATH=/bin",), (), ("sh",), None)
    assert (run.user, run.working_dir, run.stop_signal) == ("1:1", "/w", "SIGQUIT")
    assert (run.volumes, run.exposed_ports, run.labels) == (("/a", "/b"), ("80/tcp",), {"k": "v"})
    assert run.healthcheck is not None
    assert (run.healthcheck.test, run.healthcheck.interval_ns) == (("CMD", "true"), 30_000_000_000)
    assert [entry.empty_layer for entry in config.history] == [False, True]
    assert config.digest == digest_of(config.raw)


def test_an_almost_empty_config() -> None:
    config = parse_config(b'{"rootfs":{"type":"layers","diff_ids":null},"config":null}')
    assert (config.diff_ids, config.run.cmd, config.run.healthcheck) == ((), None, None)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"rootfs": {"type": "windows"}}, "rootfs.type"),
        ({"rootfs": {"diff_ids": ["x"]}}, "rootfs.diff_ids[0]: a digest has the form"),
        ({"config": {"Env": "A=b"}}, "config.Env: expected an array"),
        ({"config": {"Cmd": ["a", 1]}}, "config.Cmd[1]: expected a string"),
        ({"config": {"Cmd": ["a\0"]}}, "config.Cmd[0]: the string holds a NUL"),
        ({"config": {"Volumes": ["/a"]}}, "config.Volumes: expected an object"),
        ({"config": {"Healthcheck": {"Interval": -5}}}, "config.Healthcheck.Interval: -5"),
        ({"history": [{"empty_layer": 1}]}, "history[0].empty_layer"),
    ],
)
def test_a_bad_config_is_refused_with_its_place(document: object, problem: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_config(json.dumps(document).encode())
    assert problem in str(caught.value)


def test_manifest_and_config_must_agree() -> None:
    manifest = parse(manifest_document())
    assert isinstance(manifest, Manifest)
    config = parse_config(json.dumps({"architecture": "arm64", "rootfs": {"diff_ids": []}}).encode())
    with pytest.raises(ManifestError, match="1 layers and the config 0 diff IDs"):
        check_pair(manifest, config, "app")
    with pytest.raises(ManifestError, match="for linux/arm64 only, and linux/amd64 was asked for"):
        check_platform(config, AMD64, "app")
    check_platform(config, Platform.parse("linux/arm64/v8"), "app")


def test_verify_bytes() -> None:
    verify_bytes(b"x", digest_of(b"x"), "config")
    verify_bytes(b"x", digest_of(b"x", "sha512"), "config")
    with pytest.raises(ManifestError, match="verify config"):
        verify_bytes(b"y", digest_of(b"x"), "config")
