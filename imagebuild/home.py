"""Where the state and the settings of ``vch`` and ``imagebuild`` are, by the XDG base directory specification."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def home(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of all state: ``VCH_HOME``, else ``vch`` in the user's data folder."""
    if own := environment.get("VCH_HOME"):
        return Path(own).absolute()
    return _base(environment, "XDG_DATA_HOME", ".local/share") / "vch"


def images(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of the image store."""
    return home(environment) / "images"


def config_file(environment: Mapping[str, str] = os.environ) -> Path:
    """The file with the user's settings, which need not exist: ``VCH_CONFIG``, else ``~/.config/vch/config.toml``."""
    if own := environment.get("VCH_CONFIG"):
        return Path(own).absolute()
    return _base(environment, "XDG_CONFIG_HOME", ".config") / "vch" / "config.toml"


def _base(environment: Mapping[str, str], variable: str, default: str) -> Path:
    # The specification: a relative path in these variables is invalid, and to be ignored.
    given = environment.get(variable, "")
    return Path(given) if given.startswith("/") else Path(environment.get("HOME") or Path.home()) / default
