"""Which starts the thread leaves to the fork before there is a child."""

from pathlib import Path

import pytest

from tether.process.starters import look_ahead
from tether.spec import Process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bin/sub").mkdir(parents=True)
    (tmp_path / "bin/runs").touch(0o755)
    (tmp_path / "bin/text").touch(0o644)
    return tmp_path / "bin"


def looked(folder: Path, program: str, cwd: str = "/") -> bool:
    """Whether the thread would start it."""
    try:
        look_ahead(Process(args=(program.encode(),), cwd=cwd.encode()), {b"PATH": b"/none:%b" % bytes(folder)})
    except OSError:
        return False
    return True


def test_programs_that_are_there(folder: Path) -> None:
    assert looked(folder, "runs")
    assert looked(folder, f"{folder}/runs")


@pytest.mark.parametrize("program", ["nothing", "sub", "text", ""])
def test_programs_that_cannot_be_executed(folder: Path, program: str) -> None:
    assert not looked(folder, program)


def test_a_working_directory_that_would_have_to_be_made(folder: Path) -> None:
    assert looked(folder, "runs", str(folder))
    assert not looked(folder, "runs", str(folder / "new"))
    assert not looked(folder, "runs", str(folder / "text"))
