"""What tether has made in the writable layer is told apart from what the container has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tether.rootfs import baseline


@pytest.fixture
def upper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A writable layer."""
    folder = tmp_path / "upper"
    folder.mkdir()
    monkeypatch.setattr(baseline, "UPPER", str(folder))
    monkeypatch.setattr(baseline, "NOTE", str(tmp_path / "note"))
    return folder


def noted() -> baseline.State:
    return baseline.read(Path(baseline.NOTE).read_bytes())


def test_mount_points_and_their_parents_are_noted(upper: Path) -> None:
    before = baseline.state()
    (upper / "a b/c").mkdir(parents=True)
    (upper / "else").mkdir()  # by a container that runs meanwhile
    baseline.note(before, [b"/a b/c"])
    assert sorted(noted()) == [b"/a b", b"/a b/c"]
    assert noted()[b"/a b/c"] == baseline.describe((upper / "a b/c").stat())


def test_later_ones_are_added(upper: Path) -> None:
    baseline.note(baseline.state(), [])
    assert not Path(baseline.NOTE).exists()
    for name in ("one", "two"):
        before = baseline.state()
        (upper / name).mkdir()
        baseline.note(before, [b"/" + name.encode()])
    assert sorted(noted()) == [b"/one", b"/two"]


def test_what_was_there_is_the_containers(upper: Path) -> None:
    (upper / "mine").mkdir()
    baseline.note(baseline.state(), [b"/mine"])
    assert not Path(baseline.NOTE).exists()
