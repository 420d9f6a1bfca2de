"""The fuzz target with random inputs: seconds of what `make fuzz` does for hours with coverage as its guide."""

import runpy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

TARGET = runpy.run_path(str(Path(__file__).parents[1] / "fuzz/fuzz_decoder.py"))
SEEDS: list[bytes] = TARGET["seeds"]()

edits = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=6)), min_size=1, max_size=6)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(TARGET["TRIALS"]) - 1), st.binary(max_size=600))
def test_the_fuzz_target_holds(trial: int, data: bytes) -> None:
    TARGET["try_one"](bytes((trial,)) + data)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_seed_holds(seed: bytes) -> None:
    TARGET["try_one"](seed)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(SEEDS), edits)
def test_what_is_almost_right_holds(seed: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    """The published examples with bytes replaced, left out and put in: behind what random bytes never pass."""
    data = bytearray(seed)
    for place, dropped, put in changes:
        at = place % (len(data) + 1)
        data[at : at + dropped] = put
    TARGET["try_one"](bytes(data))
