"""Image names: parsing, defaults, and the short form that people type.

The grammar is that of the distribution project's ``reference`` package::

    reference  = name [":" tag] ["@" digest]
    name       = [domain "/"] path
    domain     = host [":" port]            host: domain name, IPv4 address or [IPv6 address]
    path       = component {"/" component}  lower case letters and digits, joined by . _ __ or dashes
    tag        = up to 128 of letters, digits, "_", "." and "-", not beginning with "." or "-"

and Docker's short names stand for Docker Hub: ``busybox`` is ``docker.io/library/busybox:latest``.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from imagebuild.digest import digest_problem
from imagebuild.errors import ImageNameError

DOCKER_HUB = "docker.io"
_OLD_DOCKER_HUB = "index.docker.io"  # what Docker Hub was called before 2016; scripts still say it
_OFFICIAL = "library/"  # where Docker Hub keeps the images that have no owner
DEFAULT_TAG = "latest"

MAX_PATH = 255  # distribution/reference: a repository's path in characters
MAX_TAG = 128
MAX_PORT = 65535

_HOST_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = re.compile(rf"(?P<host>{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[0-9a-fA-F:]+\])(?::(?P<port>[0-9]+))?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")

_STEP = "parse image name"
_EXAMPLE = "a name looks like busybox, user/image:tag or registry.example.com:5000/path/image@sha256:..."


class Reference(NamedTuple):
    """A complete image name.

    ``registry`` is ``host[:port]``, ``repository`` the path in it.  Where a tag and a digest are both given the digest
    decides what is fetched, and the tag is only a memory of where it came from.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, name: str, default_tag: str | None = DEFAULT_TAG) -> Reference:
        """The reference that ``name`` stands for; ``default_tag`` where it has neither tag nor digest.

        Raises ImageNameError, which says what is wrong with the name.
        """
        if "://" in name:
            raise _bad(name, "an image name has no http:// or other scheme")
        rest, at, digest = name.partition("@")
        if at and (problem := digest_problem(digest)):
            raise _bad(name, problem)
        rest, tag = _split_tag(rest)
        if tag is not None and not _TAG.fullmatch(tag):
            raise _bad(name, _tag_problem(tag))
        registry, repository = _split_registry(rest)
        problem = _registry_problem(registry) or _path_problem(repository)
        if not problem and registry == DOCKER_HUB and _IMAGE_ID.fullmatch(rest):
            problem = "64 hex digits are an image ID, not a name"
        if problem:
            raise _bad(name, problem)
        if tag is None and not digest:
            tag = default_tag
        return cls(registry, repository, tag, digest or None)

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest, else the tag, else ``latest``."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def name(self) -> str:
        """Registry and repository without tag and digest."""
        return f"{self.registry}/{self.repository}"

    def with_digest(self, digest: str) -> Reference:
        """The same repository and tag, pinned to ``digest``."""
        return self._replace(digest=digest)

    def familiar(self) -> str:
        """The shortest form that parses back to this reference, with its tag: ``busybox:latest``."""
        return self._familiar_name() + self._suffix()

    def __str__(self) -> str:
        return self.name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def _familiar_name(self) -> str:
        if self.registry != DOCKER_HUB:
            return self.name
        official = self.repository.removeprefix(_OFFICIAL)
        for short in (official, self.repository):
            # A path such as example.com/x on Docker Hub would read as a registry's name if the domain were left out.
            if not _IMAGE_ID.fullmatch(short) and _split_registry(short) == (DOCKER_HUB, self.repository):
                return short
        return self.name


def is_loopback(registry: str) -> bool:
    """Whether ``host[:port]`` is this machine by its very name: 127.0.0.0/8, ::1 or localhost.

    Names are not looked up, since what a resolver answers may change between the check and the use.
    """
    match = _DOMAIN.fullmatch(registry)
    host = match["host"].strip("[]") if match else registry
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bad(name: str, problem: str) -> ImageNameError:
    # An image name may come from anywhere: shown shortened and with control characters escaped.
    shown = name if len(name) <= MAX_PATH else name[:MAX_PATH] + "..."
    return ImageNameError(_STEP, ascii(shown)[1:-1], problem, _EXAMPLE)


def _split_tag(rest: str) -> tuple[str, str | None]:
    """Cut the tag off; a colon that comes before a slash belongs to a port."""
    head, colon, tail = rest.rpartition(":")
    if not colon or "/" in tail:
        return rest, None
    return head, tail


def _split_registry(rest: str) -> tuple[str, str]:
    """Registry and path of a name without tag and digest, with Docker's defaults filled in.

    The part before the first slash is a registry if it has a dot, a colon or a capital, or is ``localhost``.
    """
    first, slash, path = rest.partition("/")
    is_registry = slash and (any(mark in first for mark in ".:") or first == "localhost" or first != first.lower())
    if not is_registry:
        first, path = DOCKER_HUB, rest
    if first == _OLD_DOCKER_HUB:
        first = DOCKER_HUB
    if first == DOCKER_HUB and "/" not in path:
        path = _OFFICIAL + path
    return first, path


def _registry_problem(registry: str) -> str:
    match = _DOMAIN.fullmatch(registry)
    if not match:
        return f"{registry!a} is not a registry's host name"
    if match["host"].startswith("["):
        try:
            ipaddress.IPv6Address(match["host"][1:-1])
        except ValueError:
            return f"{match['host']} is not an IPv6 address"
    port = match["port"]
    if port is not None and not (len(port) <= len(str(MAX_PORT)) and 0 < int(port) <= MAX_PORT):
        return f"{port[:20]} is not a port number"
    return ""


def _path_problem(path: str) -> str:
    if not path or path == _OFFICIAL:
        return "the name is empty"
    if len(path) > MAX_PATH:
        return f"the repository's path has {len(path)} characters, and {MAX_PATH} are allowed"
    for component in path.split("/"):
        if not component:
            return "there is an empty part between two slashes or at an end"
        if not _COMPONENT.fullmatch(component):
            return _component_problem(component)
    return ""


def _component_problem(component: str) -> str:
    if component != component.lower() and _COMPONENT.fullmatch(component.lower()):
        return f"a repository is written in lower case, and {component!r} is not"
    if not component[0].isalnum() or not component[-1].isalnum():
        return f"{component!a} must begin and end with a letter or digit"
    return f"{component!a} may hold only a-z, 0-9 and, between them, one '.', one or two '_', or dashes"


def _tag_problem(tag: str) -> str:
    if not tag:
        return "there is a colon, and no tag behind it"
    if len(tag) > MAX_TAG:
        return f"the tag has {len(tag)} characters, and {MAX_TAG} are allowed"
    return f"the tag {tag!a} may hold only letters, digits, '_', '.' and '-', and not begin with '.' or '-'"
