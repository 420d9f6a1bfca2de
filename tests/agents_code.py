"""The agent's code as a zip file, for programs of a container that try a part of it in a real VM."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).parents[1]


@contextmanager
def agents_code(main: str) -> Iterator[BinaryIO]:
    """The file, at its beginning; `main` is the source of a program to run with it, if any."""
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for path in (ROOT / "tether").rglob("*.py"):
                archive.write(path, path.relative_to(ROOT))
            if main:
                archive.writestr("__main__.py", main)
        file.seek(0)
        yield file
