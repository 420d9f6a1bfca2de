"""The fuzz target with random inputs: seconds of what `make fuzz` does for hours with coverage as its guide."""

import runpy
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

TARGET = runpy.run_path(str(Path(__file__).parents[1] / "fuzz/fuzz_decoder.py"))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 3), st.binary(max_size=600))
def test_the_fuzz_target_holds(trial: int, data: bytes) -> None:
    TARGET["try_one"](bytes((trial,)) + data)
