"""Content digests: their syntax, and checking bytes against them.

A digest is ``algorithm:hex`` (OCI image-spec, descriptor.md, "Digests").  Only algorithms that Python can compute and
that nobody can forge are taken, so a digest that parses is a digest that can be verified.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from imagebuild.errors import ManifestError

if TYPE_CHECKING:
    from hashlib import _Hash

# Algorithm -> number of hex digits.  sha256 and sha512 are OCI's registered ones, sha384 is the one that Docker's
# library knows besides.
HEX_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}

_HEX = re.compile(r"[0-9a-f]+")  # lower case only: one content, one spelling, one file in the store


def digest_problem(text: str) -> str:
    """What is wrong with ``text`` as a digest, as a phrase; empty when it is one."""
    algorithm, colon, digits = text.partition(":")
    if not colon:
        return "a digest has the form algorithm:hex"
    if algorithm not in HEX_LENGTHS:
        return f"the digest algorithm {algorithm!r} is not one of {', '.join(HEX_LENGTHS)}"
    if len(digits) != HEX_LENGTHS[algorithm]:
        return f"a {algorithm} digest has {HEX_LENGTHS[algorithm]} hex digits, this one {len(digits)}"
    if not _HEX.fullmatch(digits):
        return "a digest's hex digits are 0-9 and a-f, in lower case"
    return ""


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of ``data``."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def hasher_for(digest: str) -> _Hash:
    """A fresh hash object of the algorithm of ``digest``, which must be valid."""
    return hashlib.new(digest.partition(":")[0])


def verify_bytes(data: bytes, digest: str, what: str) -> None:
    """Raise ManifestError unless ``data`` has this (valid) digest; ``what`` names it in the message."""
    found = digest_of(data, digest.partition(":")[0])
    if found != digest:
        raise ManifestError(
            f"verify {what}",
            digest,
            f"the content's digest is {found}",
            "the source sent something else than it promised",
        )
