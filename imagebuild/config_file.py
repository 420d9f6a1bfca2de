"""The user's settings: ``config.toml``, then the environment, which wins.

    [images]
    keep_blobs = true                          # VCH_KEEP_BLOBS=1

    [registry."docker.io"]
    mirrors = ["mirror.example.com"]           # looked at first, by pulls
    insecure = false                           # VCH_INSECURE_REGISTRIES=host:port,host
    ca_file = "/etc/ssl/our-ca.pem"

    [registries]                               # how patient to be; see RegistrySettings
    connect_timeout = 10
    stall_timeout = 30
    attempts = 5
    push_chunk = 0

Tables that are not ours belong to others who read the same file; an unknown key in one of ours is a mistake.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagebuild.errors import OperationError
from imagebuild.home import config_file
from imagebuild.registry.settings import RegistrySettings

_STEP = "read settings"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_NUMBERS = {
    "connect_timeout": "connect_timeout_s",
    "stall_timeout": "stall_timeout_s",
    "attempts": "attempts",
    "push_chunk": "push_chunk",
}


class SettingsError(OperationError):
    """A settings file or variable that cannot be understood."""


@dataclass(frozen=True)
class Settings:
    """What the user has set about images."""

    registries: RegistrySettings = field(default_factory=RegistrySettings)
    keep_blobs: bool = False


def load_settings(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings; a file that is not there is an empty one.  SettingsError names the key that is wrong."""
    path = path or config_file(environment)
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        document = {}
    except (OSError, ValueError) as error:
        raise SettingsError(_STEP, str(path), str(error)) from error
    reader = _Reader(str(path))
    images = reader.table(document.get("images"), "images", {"keep_blobs"})
    registries = _registries(reader, document, environment)
    keep = reader.typed(images, "images", "keep_blobs", bool, False)
    if "VCH_KEEP_BLOBS" in environment:
        keep = _flag("VCH_KEEP_BLOBS", environment["VCH_KEEP_BLOBS"])
    return Settings(registries, keep)


@dataclass(frozen=True)
class _Reader:
    """Reads tables, and knows which file to name when something is wrong."""

    subject: str

    def table(self, value: object, name: str, known: set[str] | None = None) -> Mapping[str, Any]:
        """The table of this full name, empty if absent; ``known`` are the keys it may have, None for any."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise SettingsError(_STEP, self.subject, f"{name} is not a table")
        if known is not None and (unknown := value.keys() - known):
            has = ", ".join(sorted(known))
            raise SettingsError(_STEP, self.subject, f"there is no setting {name}.{min(unknown)}", f"there is {has}")
        return value

    def typed(self, table: Mapping[str, Any], name: str, key: str, kind: type | tuple[type, ...], default: Any) -> Any:
        """The value of ``key`` in the table of this full name, which must be of ``kind``."""
        value = table.get(key, default)
        # bool is a subclass of int, and "attempts = true" is a mistake.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise SettingsError(_STEP, self.subject, f"{name}.{key} is {value!r}, which is of the wrong type")
        return value


def _registries(reader: _Reader, document: Mapping[str, Any], environment: Mapping[str, str]) -> RegistrySettings:
    numbers = reader.table(document.get("registries"), "registries", set(_NUMBERS))
    given: dict[str, Any] = {
        _NUMBERS[key]: reader.typed(numbers, "registries", key, (int, float), 0) for key in numbers
    }
    mirrors: dict[str, tuple[str, ...]] = {}
    ca_files: dict[str, Path] = {}
    insecure = set(environment.get("VCH_INSECURE_REGISTRIES", "").replace(",", " ").split())
    for host, value in reader.table(document.get("registry"), "registry").items():
        name = f'registry."{host}"'
        table = reader.table(value, name, {"mirrors", "insecure", "ca_file"})
        listed = reader.typed(table, name, "mirrors", list, [])
        if not all(isinstance(one, str) for one in listed):
            raise SettingsError(_STEP, reader.subject, f"{name}.mirrors is no list of names")
        if listed:
            mirrors[host] = tuple(listed)
        if reader.typed(table, name, "insecure", bool, False):
            insecure.add(host)
        if ca_file := reader.typed(table, name, "ca_file", str, ""):
            ca_files[host] = Path(ca_file).expanduser()
    return RegistrySettings(mirrors=mirrors, insecure=frozenset(insecure), ca_files=ca_files, **given)


def _flag(name: str, text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise SettingsError(_STEP, name, f"{text!r} is neither yes nor no")
