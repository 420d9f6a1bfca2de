"""Where a VM that nobody talks to finds its spec.  Imported late: a VM with an appliance needs none of it.

    iso:LABEL          the file vch/spec.json on the ISO with this volume label
    fw_cfg[:NAME]      a file that QEMU hands over: -fw_cfg name=opt/org.vch/spec,file=FILE
    guestinfo[:KEY]    a variable of the VM on vSphere: guestinfo.vch.spec (tether/sources/guestinfo.py)
    smbios             an OEM string of SMBIOS that begins with vch.spec=
    cmdline:SPEC       the kernel command line itself
    auto               what UNASKED says

Several are separated by commas, and asked in this order: the first that has a spec gives the whole of it.  None is
merged with another, and one that has a wrong spec is an error, never passed over.  The text is JSON; what begins
otherwise is taken for base64 of it (both alphabets), for places that take no spaces or quotes.
"""

import binascii
import os

from tether.faults import TetherError
from tether.link.record import Record
from tether.sources import medium

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

UNASKED = "fw_cfg,guestinfo,smbios"  # where is looked when the kernel command line names none and there is no link
KNOWN = "iso:LABEL, fw_cfg[:NAME], guestinfo[:KEY], smbios, cmdline:SPEC, auto"
SPEC_ON_ISO = "vch/spec.json"
SPEC_BYTES = 1 << 20  # as long as the longest message of a link
_ISO, _FW_CFG, _GUESTINFO, _SMBIOS, _COMMAND_LINE, _AUTO = "iso", "fw_cfg", "guestinfo", "smbios", "cmdline", "auto"
_FW_CFG_FOLDER = "/sys/firmware/qemu_fw_cfg/by_name"  # Documentation/ABI/testing/sysfs-firmware-qemu_fw_cfg
_FW_CFG_NAME = "opt/org.vch/spec"
_GUESTINFO_KEY = "vch.spec"
_DMI_TABLE = "/sys/firmware/dmi/tables/DMI"  # Documentation/ABI/testing/sysfs-firmware-dmi-tables
_OEM_STRINGS = 11  # type of the structure
_OEM_PREFIX = b"vch.spec="


class Found(Record):
    """A spec's text, and where it is from, in words and as a source."""

    text: bytes
    name: str
    kind: str


def find(sources: str) -> Found:
    """The first spec that there is.  Raises TetherError if there is none, or a source is not known."""
    asked = []
    for kind, place in each(sources):
        found = _ask(kind, place)
        if found is not None:
            return Found(text=_plain(found.text, found.name), name=found.name, kind=found.kind)
        asked.append(f"{kind}:{place}" if place else kind)
    raise TetherError("spec", f"is not in {', '.join(asked)}", hint=f"give it there, or in another of {KNOWN}")


def there_is_one() -> bool:
    """Whether a VM without a link has been given a spec instead."""
    return any(_ask(kind, place) is not None for kind, place in each(UNASKED))


def each(sources: str) -> "Iterator[tuple[str, str]]":
    """The sources of a list, as kind and place.  Raises TetherError for one that is not known."""
    rest = sources
    while rest:
        kind = rest.partition(",")[0].partition(":")[0]
        if kind == _COMMAND_LINE:  # a spec has commas of its own
            yield kind, rest.partition(":")[2]
            return
        word, _, rest = rest.partition(",")
        place = word.partition(":")[2]
        if kind == _AUTO and not place:
            yield from each(UNASKED)
        elif kind in (_FW_CFG, _GUESTINFO) or (kind == _SMBIOS and not place) or (kind == _ISO and place):
            yield kind, place
        else:
            raise TetherError("kernel command line", f"tether.spec={word}: unknown source", hint=f"known are {KNOWN}")


def label_in(sources: str) -> str:
    """The volume label of the ISO among the sources, or ""."""
    return next((place for kind, place in each(sources) if kind == _ISO), "")


def is_medium(found: Found) -> bool:
    """Whether the spec is from an ISO, which then is mounted."""
    return found.kind == _ISO


def _ask(kind: str, place: str) -> Found | None:
    """What a source has, or None."""
    if kind == _ISO:
        medium.mount_medium(place)
        return Found(text=medium.read_medium(SPEC_ON_ISO, SPEC_BYTES), name=SPEC_ON_ISO, kind=kind)
    if kind == _FW_CFG:
        return _found(fw_cfg(place or _FW_CFG_NAME), f"fw_cfg {place or _FW_CFG_NAME}", kind)
    if kind == _GUESTINFO:
        from tether.sources.guestinfo import read_guestinfo

        return _found(read_guestinfo(place or _GUESTINFO_KEY), f"guestinfo.{place or _GUESTINFO_KEY}", kind)
    if kind == _SMBIOS:
        table = read_all(_DMI_TABLE)
        text = None if table is None else oem_value(table, _OEM_PREFIX)
        return _found(text, "SMBIOS OEM string vch.spec", kind)
    return _found(place.encode(), "kernel command line tether.spec", kind)


def _found(text: bytes | None, name: str, kind: str) -> Found | None:
    """An empty value is none: importers of OVAs write one for a property that was not filled in."""
    return Found(text=text, name=name, kind=kind) if text and text.strip() else None


def fw_cfg(name: str) -> bytes | None:
    """A file that QEMU hands over, or None."""
    return read_all(f"{_FW_CFG_FOLDER}/{name}/raw")


def read_all(path: str) -> bytes | None:
    """A file of /sys, which gives a page at a time; None if there is none.  Raises TetherError if it is too long."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        content = bytearray()
        while piece := os.read(handle, SPEC_BYTES):
            content += piece
            if len(content) > SPEC_BYTES:
                raise TetherError(path, f"has more than {SPEC_BYTES} bytes", hint="a spec is shorter")
    finally:
        os.close(handle)
    return bytes(content)


def oem_value(table: bytes, prefix: bytes) -> bytes | None:
    """What follows `prefix` in an OEM string of an SMBIOS table (DSP0134, 6.1.3 and 7.12), or None."""
    at = 0
    while at + 4 <= len(table):
        kind, length = table[at], table[at + 1]
        end = table.find(b"\0\0", at + length)
        if length < 4 or end < 0:
            return None  # a torn table: nothing after this can be told apart
        if kind == _OEM_STRINGS:
            for string in table[at + length : end].split(b"\0"):
                if string.startswith(prefix):
                    return string.removeprefix(prefix)
        at = end + 2
    return None


def _plain(text: bytes, name: str) -> bytes:
    """JSON, decoded if it is not that already."""
    bare = text.strip().rstrip(b"\0")
    if bare.startswith(b"{"):
        return bare
    try:
        standard = bare.translate(bytes.maketrans(b"-_", b"+/"), b"\r\n")
        return binascii.a2b_base64(standard + b"=" * (-len(standard) % 4), strict_mode=True)
    except binascii.Error as error:
        raise TetherError(name, f"is neither a JSON object nor base64: {error}", hint="see docs/agent.md") from error
