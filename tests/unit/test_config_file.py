"""Where state and settings are, and what a settings file may say."""

from pathlib import Path

import pytest

from imagebuild import home
from imagebuild.config_file import Settings, SettingsError, load_settings


def test_folders_follow_xdg_unless_told_otherwise() -> None:
    assert home.home({"HOME": "/h"}) == Path("/h/.local/share/vch")
    assert home.home({"HOME": "/h", "XDG_DATA_HOME": "/d"}) == Path("/d/vch")
    assert home.home({"HOME": "/h", "XDG_DATA_HOME": "relative"}) == Path("/h/.local/share/vch")
    assert home.images({"HOME": "/h", "VCH_HOME": "/v"}) == Path("/v/images")
    assert home.config_file({"HOME": "/h"}) == Path("/h/.config/vch/config.toml")
    assert home.config_file({"HOME": "/h", "VCH_CONFIG": "/c.toml"}) == Path("/c.toml")


def test_no_file_means_defaults(tmp_path: Path) -> None:
    assert load_settings(tmp_path / "none", {}) == Settings()


def test_everything_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        '[images]\nkeep_blobs = true\n[registries]\nstall_timeout = 5\nattempts = 2\n[machine]\nmemory = "1G"\n'
        '[registry."docker.io"]\nmirrors = ["a", "b"]\n[registry."r:5000"]\ninsecure = true\nca_file = "/ca.pem"\n'
    )
    found = load_settings(path, {"VCH_INSECURE_REGISTRIES": "x:1, y"})
    assert found.keep_blobs
    assert found.registries.mirrors == {"docker.io": ("a", "b")}
    assert found.registries.insecure == {"r:5000", "x:1", "y"}
    assert found.registries.ca_files == {"r:5000": Path("/ca.pem")}
    assert (found.registries.stall_timeout_s, found.registries.attempts) == (5, 2)
    assert not load_settings(path, {"VCH_KEEP_BLOBS": "no"}).keep_blobs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[images", "Expected ']'"),
        ("images = 1", "images is not a table"),
        ("[images]\nkeep_blob = true", r"no setting images.keep_blob \(there is keep_blobs\)"),
        ('[images]\nkeep_blobs = "yes"', "images.keep_blobs is 'yes', which is of the wrong type"),
        ("[registries]\nattempts = true", "registries.attempts is True"),
        ('[registry]\n"docker.io" = 1', r'registry."docker.io" is not a table'),
        ('[registry."docker.io"]\nmirrors = [1]', "is no list of names"),
        ('[registry."docker.io"]\nmirror = []', r'no setting registry."docker.io".mirror'),
    ],
)
def test_mistakes_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings(path, {})
    assert str(path) in str(caught.value)


def test_a_variable_that_says_neither_yes_nor_no(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="VCH_KEEP_BLOBS: 'maybe'"):
        load_settings(tmp_path / "none", {"VCH_KEEP_BLOBS": "maybe"})
