"""The CBOR subset, with `cbor2` as the judge."""

import math
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.link.cbor import MAX_DEPTH, dumps, loads
from tether.link.errors import CborError

INTEGERS = st.integers(-(1 << 64), (1 << 64) - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | INTEGERS | st.binary() | TEXT | st.floats(allow_nan=False)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=30)


def _without_floats(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_without_floats, value))
    if isinstance(value, dict):
        return all(map(_without_floats, value.values()))
    return not isinstance(value, float)


@given(VALUES)
def test_round_trip(value: Any) -> None:
    assert loads(dumps(value)) == value


@given(VALUES)
def test_cbor2_reads_what_we_write(value: Any) -> None:
    assert cbor2.loads(dumps(value)) == value


@given(VALUES.filter(_without_floats))
def test_we_write_and_read_what_cbor2_writes_canonically(value: Any) -> None:
    canonical = cbor2.dumps(value, canonical=True)
    assert dumps(value) == canonical
    assert loads(canonical) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_of_ours_or_one_error(data: bytes) -> None:
    try:
        value = loads(data)
    except CborError:
        return
    assert dumps(value) == data or "nan" in repr(value)  # a NaN has many encodings


@given(VALUES, st.data())
def test_every_truncation_is_refused(value: Any, data: st.DataObject) -> None:
    encoded = dumps(value)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(CborError):
        loads(encoded[:cut])


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        ("", "ends"),
        ("0000", "after the value"),
        ("1800", "shortest"),
        ("190017", "shortest"),
        ("5800", "shortest"),
        ("1f", "indefinite"),
        ("9fff", "indefinite"),
        ("bfff", "indefinite"),
        ("5fff", "indefinite"),
        ("1c", "indefinite or reserved"),
        ("c000", "tag"),
        ("f97e00", "subset"),
        ("fa47c35000", "subset"),
        ("f7", "subset"),
        ("e0", "subset"),
        ("ff", "subset"),
        ("fb00", "float"),
        ("a201010202", "not text"),
        ("a2616101616102", "doubled"),
        ("a2616201616102", "out of order"),
        ("61ff", "UTF-8"),
        ("62c3", "left"),
        ("9a7fffffff", "announced"),
        ("bb7fffffffffffffff", "announced"),
        ("5b7fffffffffffffff", "announced"),
        ("81" * (MAX_DEPTH + 1) + "00", "inside one another"),
        ("81" * 100_000, "inside one another"),
        ("a1616100" * 1, None),
    ],
)
def test_what_is_refused(encoded: str, why: str | None) -> None:
    if why is None:
        loads(bytes.fromhex(encoded))
        return
    with pytest.raises(CborError, match=why):
        loads(bytes.fromhex(encoded))


def test_depth_that_fits() -> None:
    value: list[Any] = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert loads(dumps(value)) == value
    with pytest.raises(OverflowError):
        dumps([value])


def test_text_that_is_not_unicode_never_fails() -> None:
    assert loads(dumps("a\udcffb")) == "a\\udcffb"


@pytest.mark.parametrize("value", [object(), {1: 2}, {b"a": 1}, {3.5}])
def test_what_is_not_plain_data(value: object) -> None:
    with pytest.raises(TypeError):
        dumps(value)


def test_integers_of_more_than_64_bits() -> None:
    for value in (1 << 64, -(1 << 64) - 1):
        with pytest.raises(OverflowError):
            dumps(value)


def test_floats() -> None:
    assert math.isnan(loads(dumps(math.nan)))
    assert loads(dumps(-0.0)) == 0.0
    assert dumps(1.5) == bytes.fromhex("fb3ff8000000000000")
