"""What is mounted where (proc(5), /proc/PID/mountinfo)."""

import os

from tether.link.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 65536
_ESCAPES = ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\"))


class Mounted(Record):
    """One mount: st_dev of what is in it, where it is, kind of file system, its source ("/dev/sda1") and options."""

    device: int
    path: str
    kind: str
    source: str
    options: str = ""


def read_mounts() -> tuple[Mounted, ...]:
    """All mounts, in order.  A container may have made many: more than one read(2) gives."""
    handle = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while piece := os.read(handle, _PIECE):
            text += piece
    finally:
        os.close(handle)
    return tuple(parse_mounts(text))


def parse_mounts(text: bytes) -> "Iterator[Mounted]":
    """The lines of a mountinfo file."""
    for line in text.splitlines():
        fields, _, rest = line.partition(b" - ")
        numbers, path = fields.split(b" ")[2], fields.split(b" ")[4]
        kind, source, options = rest.split(b" ")[:3]
        major, _, minor = numbers.partition(b":")
        yield Mounted(device=os.makedev(int(major), int(minor)), path=_plain(path), kind=os.fsdecode(kind),
                      source=_plain(source), options=_plain(options))


def _plain(field: bytes) -> str:
    for escape, meant in _ESCAPES:
        field = field.replace(escape, meant)
    return os.fsdecode(field)
