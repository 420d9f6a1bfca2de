"""Pages that name for each promise the tests that hold it: they are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)(?:::(\w+))?`")


@pytest.mark.parametrize("page", ["docs/link.md", "docs/agent.md"])
def test_the_tests_that_the_page_names_exist(page: str) -> None:
    named = NAMED.findall((ROOT / page).read_text())
    assert len(named) > 20
    for path, name, method in named:
        text = (ROOT / path).read_text()
        found = re.search(rf"^(?:def|class) {name}\b", text, re.MULTILINE)
        assert found, f"{path}::{name}"
        body = re.split(r"\n\S", text[found.end() :], maxsplit=1)[0]
        assert not method or re.search(rf"^    def {method}\b", body, re.MULTILINE), f"{path}::{name}::{method}"
