"""Platforms: ``os/architecture[/variant]``, their aliases, and choosing one from what an index offers.

Names are those of Go's GOOS and GOARCH, as the OCI image-spec (image-index.md, "platform") wants them.
"""

from __future__ import annotations

import os as host
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from imagebuild.errors import ManifestError

_STEP = "choose platform"

# Names that kernels, compilers and users have for the same thing: alias -> (architecture, variant).
_ALIASES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armv8l": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
    "mips64el": ("mips64le", ""),
    "ppc64el": ("ppc64le", ""),
}

# What "no variant" means: architecture -> the variant that is the same as none.
_PLAIN_VARIANT = {"amd64": "v1", "arm64": "v8", "arm": "v7"}

# Lowest variant of each architecture whose variants are ordered: a newer processor runs all from there up.
_OLDEST_VARIANT = {"amd64": 1, "arm64": 8, "arm": 5}

_WORD = r"[a-z0-9][a-z0-9_.-]{0,63}"
_VERSION = r"v(\d{1,2})(?:\.\d{1,2})?"


class Platform(NamedTuple):
    """One platform in normal form: a variant that says nothing (arm64's ``v8``) is left out."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def of(cls, os: str, architecture: str, variant: str = "") -> Platform:
        """The normal form of three words as they come from an index, a config or a user."""
        os, architecture, variant = os.lower(), architecture.lower(), variant.lower()
        if architecture in _ALIASES:
            architecture, implied = _ALIASES[architecture]
            variant = variant or implied
        if variant.isdigit():
            variant = f"v{variant}"
        if variant == _PLAIN_VARIANT.get(architecture):
            variant = ""
        return cls(os, architecture, variant)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """The platform that a user means: ``linux/arm64/v8``, ``linux/arm64``, or only ``arm64``."""
        words = text.lower().split("/")
        if len(words) == 1:
            words = ["linux", *words]
        if len(words) > 3 or not all(re.fullmatch(_WORD, word) for word in words):
            raise ManifestError(
                _STEP,
                ascii(text)[1:-1],
                "not a platform",
                "write os/architecture[/variant], such as linux/arm64/v8",
            )
        return cls.of(*words)

    @classmethod
    def host(cls) -> Platform:
        """Linux on this machine's processor."""
        return cls.of("linux", host.uname().machine)

    @property
    def is_unknown(self) -> bool:
        """Whether this is BuildKit's mark for a manifest that is no image (``unknown/unknown``: an attestation)."""
        return "unknown" in (self.os, self.architecture)

    def runnable(self) -> Iterator[Platform]:
        """What a machine of this platform runs, best first: itself, then older variants of its architecture."""
        yield self
        match = re.fullmatch(_VERSION, self.variant or _PLAIN_VARIANT.get(self.architecture, ""))
        oldest = _OLDEST_VARIANT.get(self.architecture)
        if match and oldest is not None:
            for number in range(int(match[1]) - ("." not in match[0]), oldest - 1, -1):
                yield Platform.of(self.os, self.architecture, f"v{number}")

    def runs(self, other: Platform) -> bool:
        """Whether an image for ``other`` runs on this platform."""
        return other in self.runnable()

    def __str__(self) -> str:
        return "/".join(word for word in (self.os, self.architecture, self.variant) if word)


class Offer(Protocol):
    """Anything that may say for which platform it is: a descriptor in an index."""

    @property
    def platform(self) -> Platform | None: ...


OfferT = TypeVar("OfferT", bound=Offer)


def choose(offers: Iterable[OfferT], wanted: Platform, subject: str) -> OfferT:
    """The best offer for ``wanted``; of equals the first, as the image-spec asks.

    An offer that names no platform is taken only if it is the only one there is: its config will tell.  Raises
    ManifestError that lists what is available.
    """
    images = [offer for offer in offers if not (offer.platform and offer.platform.is_unknown)]
    for candidate in wanted.runnable():
        for offer in images:
            if offer.platform == candidate:
                return offer
    if len(images) == 1 and images[0].platform is None:
        return images[0]
    available = sorted({str(offer.platform) for offer in images if offer.platform})
    raise ManifestError(
        _STEP,
        subject,
        f"there is no image for {wanted}",
        f"available: {', '.join(available)}" if available else "the index lists no image with a platform",
    )
