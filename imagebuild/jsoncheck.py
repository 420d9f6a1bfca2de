"""Reading JSON that a stranger wrote: bounded, typed, and refused with the place of what is wrong.

``null`` counts as absent throughout, because Go's encoder writes nil slices and maps so, and most of what we read was
written by Go.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from imagebuild.errors import ManifestError

# Registries refuse manifests over 4 MiB (distribution-spec, "Pushing manifests"), so nothing larger is honest.
MAX_DOCUMENT = 4 << 20
# Largest size or time an int64 holds: beyond it other tools overflow, and so would a file offset.
MAX_INTEGER = (1 << 63) - 1


class Node(NamedTuple):
    """A JSON object together with where it stands, so that an error can say ``config.Env[3]``."""

    document: str  # what is being read, such as "manifest sha256:..."
    path: str
    fields: dict[str, Any]

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raise ManifestError about the field ``key``."""
        where = f"{self.path}.{key}".strip(".")
        raise ManifestError("read image metadata", self.document, f"{where}: {problem}" if where else problem)

    def text(self, key: str) -> str:
        """A string, empty when absent."""
        return self._check_text(key, self.fields.get(key))

    def integer(self, key: str, default: int = 0) -> int:
        """An integer from 0 to int64's end."""
        value = self.fields.get(key)
        if value is None:
            return default
        # bool is a subclass of int in Python, and in JSON it is not one.
        if type(value) is not int:
            self.fail(key, f"expected an integer, found {_kind(value)}")
        if not 0 <= value <= MAX_INTEGER:
            self.fail(key, f"{value} is outside 0..{MAX_INTEGER}")
        return value

    def flag(self, key: str) -> bool:
        """A boolean, false when absent."""
        value = self.fields.get(key)
        if value is None:
            return False
        if not isinstance(value, bool):
            self.fail(key, f"expected true or false, found {_kind(value)}")
        return value

    def node(self, key: str) -> Node | None:
        """An object, None when absent."""
        value = self.fields.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(key, f"expected an object, found {_kind(value)}")
        return Node(self.document, f"{self.path}.{key}".strip("."), value)

    def child(self, key: str) -> Node:
        """An object, an empty one when absent."""
        return self.node(key) or Node(self.document, f"{self.path}.{key}".strip("."), {})

    def nodes(self, key: str, limit: int) -> Iterator[Node]:
        """The objects of an array of at most ``limit``."""
        for position, value in enumerate(self._array(key, limit)):
            if not isinstance(value, dict):
                self.fail(f"{key}[{position}]", f"expected an object, found {_kind(value)}")
            yield Node(self.document, f"{self.path}.{key}[{position}]".strip("."), value)

    def texts(self, key: str, limit: int) -> tuple[str, ...]:
        """The strings of an array of at most ``limit``."""
        return tuple(
            self._check_text(f"{key}[{position}]", value) for position, value in enumerate(self._array(key, limit))
        )

    def text_map(self, key: str, limit: int) -> dict[str, str]:
        """An object whose values are strings, with at most ``limit`` entries."""
        entries = self.child(key).fields
        if len(entries) > limit:
            self.fail(key, f"{len(entries)} entries, and {limit} are allowed")
        return {
            self._check_text(key, name): self._check_text(f"{key}.{name!a}", value) for name, value in entries.items()
        }

    def keys(self, key: str, limit: int) -> tuple[str, ...]:
        """The names in an object used as a set (Go's ``map[string]struct{}``), sorted."""
        names = self.child(key).fields
        if len(names) > limit:
            self.fail(key, f"{len(names)} entries, and {limit} are allowed")
        return tuple(sorted(self._check_text(key, name) for name in names))

    def _array(self, key: str, limit: int) -> list[Any]:
        value = self.fields.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fail(key, f"expected an array, found {_kind(value)}")
        if len(value) > limit:
            self.fail(key, f"{len(value)} elements, and {limit} are allowed")
        return value

    def _check_text(self, where: str, value: object) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            self.fail(where, f"expected a string, found {_kind(value)}")
        # Neither an argument of execve nor a file name can hold a NUL, and an unpaired surrogate has no UTF-8.
        if "\0" in value:
            self.fail(where, "the string holds a NUL")
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            self.fail(where, "the string is not valid Unicode")
        return value


def load_document(raw: bytes, document: str) -> Node:
    """Parse ``raw`` as one JSON object of at most 4 MiB; ``document`` names it in errors (ManifestError)."""
    root = Node(document, "", {})
    if len(raw) > MAX_DOCUMENT:
        root.fail("", f"{len(raw)} bytes, and {MAX_DOCUMENT} are allowed")
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        root.fail("", f"not UTF-8 at byte {error.start}")
    except RecursionError:
        root.fail("", "nested too deeply")
    except ValueError as error:  # JSONDecodeError, a repeated name, an integer of thousands of digits
        root.fail("", f"not JSON: {error}")
    if not isinstance(value, dict):
        root.fail("", f"expected an object, found {_kind(value)}")
    return Node(document, "", value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that occurs twice: one reader would take the first and another the last."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!a} occurs twice")
    return fields


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
