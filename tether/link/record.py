"""Frozen records: what both ends of the link pass around, and the schema of what they accept.

Why not `dataclasses`: the module imports `inspect`, `ast`, `re` and `enum`, 62 million instructions (half a second of a
cold boot without KVM) before PID 1 has done anything, three times what the interpreter itself needs.  A record is
the part of it that we use: keyword-only construction, equality, repr, no assignment after construction.  Type checkers
see a frozen dataclass.

The annotations of a record are its schema.  They are real objects (no module with records has `from __future__ import
annotations`), and `decode` walks them to turn untrusted plain data into records or say which key is wrong.  Understood:
bool, int, float, str, bytes, `tuple[T, ...]`, `dict[str, T]`, records, `T | None`, and unions of records (told apart
by the key "type").
"""

from tether.link.errors import SchemaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Self, TypeVar, dataclass_transform

    R = TypeVar("R", bound="Record")
else:

    def dataclass_transform(**_options):
        """The decorator is for type checkers; at run time it does nothing (and `typing` stays unimported)."""
        return lambda cls: cls


_TAG = "type"  # the key that names the record where a field may hold one of several
_SCALARS = (bool, int, float, str, bytes)


@dataclass_transform(kw_only_default=True, frozen_default=True, eq_default=True)
class Record:
    """Base of all records; subclasses only declare annotated fields, with or without a default."""

    def __init_subclass__(cls) -> None:
        inherited: dict[str, Any] = getattr(cls, "_fields", {})
        cls._fields = {**inherited, **cls.__dict__.get("__annotations__", {})}
        cls._defaults = {name: getattr(cls, name) for name in cls._fields if hasattr(cls, name)}

    if TYPE_CHECKING:
        _fields: dict[str, Any] = {}
        _defaults: dict[str, Any] = {}
    else:

        def __init__(self, **values):
            own = self.__dict__
            own.update(self._defaults)
            own.update(values)
            if own.keys() != self._fields.keys():
                missing = [name for name in self._fields if name not in own]
                unknown = [name for name in own if name not in self._fields]
                raise TypeError(f"{type(self).__name__}: missing {missing}, unknown {unknown}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: cannot set {name}")

    __delattr__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({shown})"

    def but(self, **changes: object) -> "Self":
        """A copy with some fields changed."""
        return type(self)(**{**self.__dict__, **changes})


def encode(value: "Any", declared: "Any" = None) -> "Any":
    """Turns a record into plain data (dict, list, str, bytes, int, float, bool, None).

    Fields that equal their default are left out, so a peer of an older generation can still read a message that uses
    nothing new, and refuses by name one that does.
    """
    if isinstance(value, Record):
        plain = {
            name: encode(item, value._fields[name])
            for name, item in value.__dict__.items()
            if name not in value._defaults or item != value._defaults[name]
        }
        if len(_record_choices(declared)) > 1:
            plain[_TAG] = type(value).__name__
        return plain
    if isinstance(value, (tuple, list)):
        inner = declared.__args__[0] if getattr(declared, "__args__", None) else None
        return [encode(item, inner) for item in value]
    if isinstance(value, dict):
        inner = declared.__args__[1] if getattr(declared, "__args__", None) else None
        return {key: encode(item, inner) for key, item in value.items()}
    return value


def decode(cls: "type[R]", plain: object) -> "R":
    """Turns untrusted plain data into a record.

    Raises SchemaError that names the key.  An unknown key is an error: what a peer asks for and we do not know must
    never be ignored in silence.
    """
    if not isinstance(plain, dict):
        raise SchemaError("", f"expected a map for {cls.__name__}, got {_kind(plain)}")
    fields = cls._fields
    for key in plain:
        if key not in fields and key != _TAG:
            raise SchemaError(str(key), f"unknown key; {cls.__name__} has {', '.join(fields)}")
    values = {}
    for name, declared in fields.items():
        if name in plain:
            value = plain[name]
            if type(value) is not declared:  # or it is a scalar that fits, as most are
                try:
                    value = _decode(declared, value)
                except SchemaError as error:
                    raise error.below(name) from None
            values[name] = value
        elif name not in cls._defaults:
            raise SchemaError(name, "required key is missing")
    return cls(**values)


def _decode(declared: "Any", plain: "Any") -> "Any":
    if declared in _SCALARS:
        return _scalar(declared, plain)
    if isinstance(declared, type) and issubclass(declared, Record) and not hasattr(declared, "__origin__"):
        return decode(declared, plain)
    origin = getattr(declared, "__origin__", None)
    if origin is tuple:
        if not isinstance(plain, (list, tuple)):
            raise SchemaError("", f"expected a list, got {_kind(plain)}")
        return _each(declared.__args__[0], plain)
    if origin is dict:
        if not isinstance(plain, dict):
            raise SchemaError("", f"expected a map, got {_kind(plain)}")
        keys, values = _each(str, plain), plain.values()
        return dict(zip(keys, _each(declared.__args__[1], values, keys), strict=True))
    return _choice(declared, plain)


def _each(declared: "Any", plain: "Iterable[Any]", keys: "tuple[str, ...] | None" = None) -> "tuple[Any, ...]":
    """Decodes several values; a wrong one is named by its key, or its number."""
    done: list[Any] = []
    for value in plain:
        try:
            done.append(_decode(declared, value))
        except SchemaError as error:
            raise error.below(keys[len(done)] if keys else f"[{len(done)}]") from None
    return tuple(done)


def _choice(declared: "Any", plain: "Any") -> "Any":
    """Decodes a union: None, one scalar or container, or the record that the tag names."""
    if plain is None and type(None) in declared.__args__:
        return None
    others = [arg for arg in declared.__args__ if arg is not type(None)]
    if len(others) == 1:
        return _decode(others[0], plain)
    names = {cls.__name__: cls for cls in others}
    tag = plain.get(_TAG) if isinstance(plain, dict) else None
    if not isinstance(tag, str) or tag not in names:
        raise SchemaError(_TAG, f"expected one of {', '.join(names)}, got {tag!r:.40}")
    return decode(names[tag], plain)


def _record_choices(declared: "Any") -> "list[Any]":
    return [arg for arg in getattr(declared, "__args__", ()) if arg is not type(None)]


def _scalar(declared: "Any", plain: "Any") -> "Any":
    if declared is bytes and isinstance(plain, str):  # sources in JSON have no byte strings
        return plain.encode("utf-8", "surrogateescape")
    if declared is float and type(plain) is int:
        return float(plain)
    if type(plain) is not declared:
        raise SchemaError("", f"expected {declared.__name__}, got {_kind(plain)}")
    return plain


def _kind(plain: object) -> str:
    return "nothing" if plain is None else type(plain).__name__
