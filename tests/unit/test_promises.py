"""docs/link.md names for each promise the tests that hold it: they are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_the_tests_that_the_page_names_exist() -> None:
    named = NAMED.findall((ROOT / "docs/link.md").read_text())
    assert len(named) > 20
    for path, name in named:
        text = (ROOT / path).read_text()
        assert re.search(rf"^(def|class) {name}\b", text, re.MULTILINE), f"{path}::{name}"
