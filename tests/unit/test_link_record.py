"""Records: frozen values whose annotations are the schema of untrusted data."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.link.errors import SchemaError
from tether.link.messages import Ended, Exited, Fault, Signalled, Start
from tether.link.record import Record, decode, encode
from tether.spec import Disk, Identity, Layer, Network, Process, Root, Spec, Terminal

ROOT = Path(__file__).parents[2]


def spec(**changes: object) -> Spec:
    base = Spec(
        id="c0ffee",
        identity=Identity(entropy=bytes(32), clock_ns=1),
        root=Root(layers=(Layer(disk=Disk(serial="image", partition=1)),)),
        network=Network(hostname="box"),
        process=Process(args=(b"sh", b"-c", b"echo \xff")),
    )
    return base.but(**changes)


def test_a_record_cannot_be_changed() -> None:
    disk = Disk(serial="a")
    with pytest.raises(AttributeError, match="frozen"):
        disk.serial = "b"  # type: ignore[misc]
    assert disk.but(serial="b") == Disk(serial="b")
    assert disk.serial == "a"


def test_a_missing_or_unknown_field_is_refused_at_construction() -> None:
    with pytest.raises(TypeError, match="missing.*'step'"):
        Fault(object="x", text="y")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unknown.*'colour'"):
        Disk(colour="red")  # type: ignore[call-arg]


def test_equal_records_hash_alike_and_kinds_differ() -> None:
    assert hash(Exited(code=1)) == hash(Exited(code=1))
    assert Exited(code=9) != Signalled(number=9)


@given(
    args=st.lists(st.binary(max_size=20), min_size=1),
    env=st.lists(st.binary(max_size=20)),
    user=st.text(max_size=10),
    stdin=st.booleans(),
    terminal=st.none() | st.builds(Terminal, rows=st.integers(1, 999), columns=st.integers(1, 999)),
)
def test_what_is_encoded_decodes_to_the_same(
    args: list[bytes], env: list[bytes], user: str, stdin: bool, terminal: Terminal | None
) -> None:
    process = Process(args=tuple(args), env=tuple(env), user=user, stdin=stdin, terminal=terminal)
    start = Start(spec=spec(process=process))
    assert decode(Start, encode(start)) == start


def test_defaults_are_not_sent() -> None:
    assert encode(Process(args=(b"true",))) == {"args": [b"true"]}


def test_a_union_of_records_is_told_apart_by_its_type() -> None:
    for state in (Exited(code=3), Signalled(number=9, core=True)):
        ended = Ended(session=0, state=state)
        assert decode(Ended, encode(ended)) == ended


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"spec": 3}, "spec: expected a map for Spec, got int"),
        ({"spec": {**encode(spec()), "colour": 1}}, "spec.colour: unknown key"),
        ({"spec": {**encode(spec()), "id": None}}, "spec.id: expected str, got nothing"),
        ({"spec": {**encode(spec()), "process": {"args": b"sh"}}}, "spec.process.args: expected a list, got bytes"),
        ({"spec": {**encode(spec()), "process": {"args": ["a", 5]}}}, r"process.args\[1\]: expected bytes, got int"),
        ({"spec": {**encode(spec()), "process": {}}}, "spec.process.args: required key is missing"),
        ({"spec": {**encode(spec()), "stop_signal": True}}, "spec.stop_signal: expected int, got bool"),
        ([], "expected a map for Start, got list"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_name_of_its_key(plain: object, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        decode(Start, plain)


def test_an_unknown_member_of_a_union_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"state.type: expected one of Exited, Signalled, got 'Ascended'"):
        decode(Ended, {"session": 0, "state": {"type": "Ascended"}})


def test_text_stands_for_bytes_where_a_source_has_no_bytes() -> None:
    assert decode(Process, {"args": ["grüße"]}).args == ("grüße".encode(),)


def test_subclasses_inherit_fields() -> None:
    class Point(Record):
        x: int
        y: int = 0

    class Named(Point):
        name: str = ""

    assert decode(Named, {"x": 1, "name": "a"}) == Named(x=1, name="a")


def test_records_import_nothing_heavy() -> None:
    heavy = {"dataclasses", "typing", "re", "enum", "json", "functools", "collections"}
    code = "import sys; import tether.link.messages; print(' '.join(sys.modules))"
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{path}; {code}"], check=True, capture_output=True, text=True, timeout=60
    ).stdout.split()
    assert heavy.isdisjoint(loaded)
