"""The image config: what the layers must be, and how the image wants to be run.

Sources: OCI image-spec ``config.md`` and, for Healthcheck and Shell, Docker's image specification v1.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from imagebuild.digest import digest_of, digest_problem
from imagebuild.errors import ManifestError
from imagebuild.jsoncheck import Node, load_document
from imagebuild.oci.manifest import MAX_LAYERS, Manifest
from imagebuild.oci.platforms import Platform

# Bounds that no sane image comes near, so that a hostile one of 4 MiB stays cheap to hold and to show.
MAX_WORDS = 16384  # environment entries, arguments, volumes, ports, labels: each
MAX_HISTORY = 4096  # one entry a build step, those that made no layer included


class Healthcheck(NamedTuple):
    """How to find out whether the container works.  Times in nanoseconds; 0 means the engine's default."""

    test: tuple[str, ...]
    interval_ns: int
    timeout_ns: int
    start_period_ns: int
    retries: int
    start_interval_ns: int = 0


class RunConfig(NamedTuple):
    """What the image wants of the process that runs in it.  None and empty differ: ``[]`` clears an inherited one."""

    env: tuple[str, ...]
    entrypoint: tuple[str, ...] | None
    cmd: tuple[str, ...] | None
    user: str
    working_dir: str
    stop_signal: str
    volumes: tuple[str, ...]
    exposed_ports: tuple[str, ...]
    labels: Mapping[str, str]
    healthcheck: Healthcheck | None
    shell: tuple[str, ...] | None

    def __hash__(self) -> int:
        return hash((self.env, self.entrypoint, self.cmd))  # labels have no hash


class HistoryEntry(NamedTuple):
    """One build step."""

    created: str
    created_by: str
    comment: str
    empty_layer: bool


class ImageConfig(NamedTuple):
    """A checked image config.  ``diff_ids`` are the digests of the unpacked layers, lowest first."""

    platform: Platform
    created: str
    author: str
    diff_ids: tuple[str, ...]
    run: RunConfig
    history: tuple[HistoryEntry, ...]
    raw: bytes

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"ImageConfig({self.digest})"

    @property
    def digest(self) -> str:
        """The sha256 digest of the raw bytes: Docker's image ID."""
        return digest_of(self.raw)


def parse_config(raw: bytes, subject: str = "") -> ImageConfig:
    """Parse and check an image config; ManifestError says what is wrong with it."""
    root = load_document(raw, f"config {subject or digest_of(raw)}")
    return ImageConfig(
        platform=Platform.of(root.text("os") or "linux", root.text("architecture"), root.text("variant")),
        created=root.text("created"),
        author=root.text("author"),
        diff_ids=_diff_ids(root.child("rootfs")),
        run=_run_config(root.child("config")),
        history=tuple(_history(node) for node in root.nodes("history", MAX_HISTORY)),
        raw=raw,
    )


def check_pair(manifest: Manifest, config: ImageConfig, subject: str) -> None:
    """Raise ManifestError unless manifest and config speak of the same number of layers."""
    if len(manifest.layers) != len(config.diff_ids):
        raise ManifestError(
            "read image metadata",
            subject,
            f"the manifest has {len(manifest.layers)} layers and the config {len(config.diff_ids)} diff IDs",
            "the image is damaged: build or push it again",
        )


def check_platform(config: ImageConfig, wanted: Platform, subject: str) -> None:
    """Raise ManifestError unless the image runs on ``wanted``; a config that names no architecture is believed."""
    found = config.platform
    if found.architecture and not wanted.runs(found):
        raise ManifestError("choose platform", subject, f"the image is for {found} only, and {wanted} was asked for")


def _diff_ids(rootfs: Node) -> tuple[str, ...]:
    if rootfs.text("type") not in ("", "layers"):
        rootfs.fail("type", f"expected 'layers', found {rootfs.text('type')!a}")
    diff_ids = rootfs.texts("diff_ids", MAX_LAYERS)
    for position, diff_id in enumerate(diff_ids):
        if problem := digest_problem(diff_id):
            rootfs.fail(f"diff_ids[{position}]", problem)
    return diff_ids


def _run_config(node: Node) -> RunConfig:
    healthcheck = node.node("Healthcheck")
    return RunConfig(
        env=node.texts("Env", MAX_WORDS),
        entrypoint=_words(node, "Entrypoint"),
        cmd=_words(node, "Cmd"),
        user=node.text("User"),
        working_dir=node.text("WorkingDir"),
        stop_signal=node.text("StopSignal"),
        volumes=node.keys("Volumes", MAX_WORDS),
        exposed_ports=node.keys("ExposedPorts", MAX_WORDS),
        labels=MappingProxyType(node.text_map("Labels", MAX_WORDS)),
        healthcheck=_healthcheck(healthcheck) if healthcheck else None,
        shell=_words(node, "Shell"),
    )


def _words(node: Node, key: str) -> tuple[str, ...] | None:
    """A command line.  Docker's reader takes a lone string for a list of one, and old images have them."""
    value = node.fields.get(key)
    if value is None:
        return None
    return (node.text(key),) if isinstance(value, str) else node.texts(key, MAX_WORDS)


def _healthcheck(node: Node) -> Healthcheck:
    return Healthcheck(
        test=node.texts("Test", MAX_WORDS),
        interval_ns=node.integer("Interval"),
        timeout_ns=node.integer("Timeout"),
        start_period_ns=node.integer("StartPeriod"),
        retries=node.integer("Retries"),
        start_interval_ns=node.integer("StartInterval"),
    )


def _history(node: Node) -> HistoryEntry:
    return HistoryEntry(
        created=node.text("created"),
        created_by=node.text("created_by"),
        comment=node.text("comment"),
        empty_layer=node.flag("empty_layer"),
    )
