"""What is changed in the kernel's source: in all the files of an edit, or in none."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuild.boot import kernel_edits, pico_build
from imagebuild.errors import KernelError

EDIT = kernel_edits.Edit(("a.c", "b/b.h"), "CONFIG_X", "CONFIG_Y", "smaller")
TESTED, OTHER = Path("linux-source-6.1.tar.xz"), Path("linux-source-6.12.tar.xz")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.c").write_text("#ifdef CONFIG_X\n#endif /* CONFIG_X */\n")
    (tmp_path / "b/b.h").write_text("CONFIG_X and more\n")
    return tmp_path


def test_every_place_is_changed(tree: Path) -> None:
    assert kernel_edits.apply(tree, [EDIT]) == []
    assert (tree / "a.c").read_text() == "#ifdef CONFIG_Y\n#endif /* CONFIG_Y */\n"
    assert (tree / "b/b.h").read_text() == "CONFIG_Y and more\n"


@pytest.mark.parametrize("text", [None, "nothing of the kind\n"])
def test_an_edit_that_does_not_fit_everywhere_changes_nothing(tree: Path, text: str | None) -> None:
    (tree / "b/b.h").unlink()
    if text is not None:
        (tree / "b/b.h").write_text(text)
    before = (tree / "a.c").read_text()
    assert kernel_edits.apply(tree, [EDIT]) == [EDIT]
    assert (tree / "a.c").read_text() == before


def test_the_tested_source_must_take_them(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"vmlinux\.lds\.S.*is not in it"):
        pico_build.edit_source(tmp_path, TESTED, lambda phase: None)


def test_another_version_is_built_without_them_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    pico_build.edit_source(tmp_path, OTHER, said.append)
    assert len(said) == len(kernel_edits.EDITS)
    assert all("left as it is" in line for line in said)
