"""Reading WWW-Authenticate: what a server wants before it answers.

One header may hold several challenges, and both challenges and their parameters are separated by commas (RFC 7235,
sections 2.1 and 4.1)::

    Basic realm="a, b", Bearer realm="https://auth.example/token",service="registry", Negotiate dG9rZW4=

so a comma says nothing by itself: what follows a name decides.  A name and ``=`` and a value is a parameter of the
challenge before it, any other name begins a challenge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SEPARATORS = re.compile(r"[ \t,]*")
_PARAMETER = re.compile(
    r"""(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*
        (?: "(?P<quoted>(?:[^"\\]|\\.)*)" | (?P<plain>[!#$%&'*+.^_`|~0-9A-Za-z/:-]+) )""",
    re.VERBOSE | re.DOTALL,
)  # "/" and ":" are not allowed unquoted, and some servers leave their realm's quotes out
_TOKEN68 = re.compile(r"[ \t]+(?P<value>[A-Za-z0-9._~+/-]+=*)[ \t]*(?=,|$)")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True)
class Challenge:
    """One way to authenticate: the scheme and the parameters' names in lower case, or a token68 instead of them."""

    scheme: str
    parameters: Mapping[str, str]
    token68: str = ""


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """All challenges of a header's value, in order; several headers are first joined by ``, ``.

    What cannot be understood is skipped, so that one broken challenge does not hide a good one.
    """
    challenges: list[Challenge] = []
    parameters: dict[str, str] = {}
    position = 0
    while position < len(header):
        position = _end(_SEPARATORS.match(header, position), position)
        if parameter := _PARAMETER.match(header, position):
            parameters.setdefault(parameter["name"].lower(), _value(parameter))
            position = parameter.end()
        elif scheme := _TOKEN.match(header, position):
            token68 = _TOKEN68.match(header, scheme.end())
            parameters = {}
            challenges.append(
                Challenge(scheme[0].lower(), MappingProxyType(parameters), token68["value"] if token68 else "")
            )
            position = _end(token68, scheme.end())
        else:
            position += 1
    return tuple(challenges)


def _end(match: re.Match[str] | None, otherwise: int) -> int:
    return match.end() if match else otherwise


def _value(parameter: re.Match[str]) -> str:
    quoted = parameter["quoted"]
    return parameter["plain"] if quoted is None else _ESCAPE.sub(r"\1", quoted)
