"""Variables that vSphere gives a VM: "guestinfo." + key.  Imported late.

They are read through VMware's backdoor (tether/sources/backdoor.py), as its own tools do: the variable itself, and if
there is none, the property of that name in guestinfo.ovfEnv, the XML document into which an OVA's properties go.  QEMU
has no such thing; there the file opt/guestinfo/KEY of fw_cfg stands in for the variable.
"""

from tether.sources.backdoor import Rpc, find_rpc
from tether.sources.search import fw_cfg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_STAND_IN = "opt/guestinfo/"
_ENVIRONMENT = "ovfEnv"
_PREFIX = "guestinfo."


def read_guestinfo(key: str, connect: "Callable[[], Rpc | None]" = find_rpc) -> bytes | None:
    """The value of guestinfo.KEY, or None.  Raises TetherError if a hypervisor that has it breaks off."""
    given = fw_cfg(_STAND_IN + key)
    if given is not None:
        return given
    rpc = connect()
    if rpc is None:
        return None
    try:
        value = _get(rpc, key)
        if value is not None:
            return value
        environment = _get(rpc, _ENVIRONMENT)
        return None if environment is None else ovf_property(environment, _PREFIX + key)
    finally:
        rpc.close()


def _get(rpc: Rpc, key: str) -> bytes | None:
    """The answer is "1 " and the value, or "0 " and why there is none."""
    answer = rpc.ask(f"info-get {_PREFIX}{key}".encode())
    return answer[2:] if answer.startswith(b"1 ") else None


def ovf_property(document: bytes, key: str) -> bytes | None:
    """The value of a property in an OVF environment (DSP0243, 9.1), or None.

    No XML parser: the document is the hypervisor's own, and in it a Property is one empty element with attributes.
    """
    for element in document.decode("utf-8", "replace").split("<Property")[1:]:
        attributes = _attributes(element)
        if attributes.get("oe:key") == key:
            value = attributes.get("oe:value")
            return None if value is None else value.encode()
    return None


def _attributes(text: str) -> dict[str, str]:
    """name="value" or name='value', again and again, up to the end of the element."""
    found: dict[str, str] = {}
    rest = text.lstrip()
    while rest and rest[0] not in "/>":
        name, _, rest = rest.partition("=")
        quote, rest = rest.lstrip()[:1], rest.lstrip()[1:]
        if quote not in ('"', "'"):
            break
        value, _, rest = rest.partition(quote)
        found[name.strip()] = _unescaped(value)
        rest = rest.lstrip()
    return found


_ENTITIES = {"lt": "<", "gt": ">", "quot": '"', "apos": "'", "amp": "&"}  # XML 1.0, 4.6: there are no others


def _unescaped(value: str) -> str:
    first, *others = value.split("&")
    parts = [first]
    for other in others:
        name, semicolon, rest = other.partition(";")
        character = _character(name) if semicolon else None
        parts.append("&" + other if character is None else character + rest)
    return "".join(parts)


def _character(name: str) -> str | None:
    """What "lt", "#60" or "#x3c" stand for; None for what stands for nothing."""
    if not name.startswith("#"):
        return _ENTITIES.get(name)
    try:
        return chr(int(name[2:], 16) if name.startswith("#x") else int(name[1:]))
    except (ValueError, OverflowError):
        return None
