"""Reading a Debian package without dpkg: an ar archive that holds a compressed tar.

Only regular files are ever taken, under names the caller chooses, so that nothing in the archive decides where
something is written.  Format: deb(5), ar(5).
"""

from __future__ import annotations

import io
import lzma
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import zstandard

from imagebuild.errors import KernelError

AR_MAGIC = b"!<arch>\n"
AR_HEADER_BYTES = 60  # ar(5): name 16, date 12, uid 6, gid 6, mode 8, size 10, end mark 2
AR_END = b"`\n"
READ_BYTES = 1 << 20  # few and large reads: a kernel package has 26 MB


class _Window(io.RawIOBase):
    """The member of an archive as a file of its own: reading never goes past the member's end."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        buffer[:len(data)] = data
        self._left -= len(data)
        return len(data)


def _members(file: IO[bytes], name: str) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, content) of each member of an ar archive; the content must be read before the next one is asked for."""
    if file.read(len(AR_MAGIC)) != AR_MAGIC:
        raise KernelError("read Debian package", name, "it is not an ar archive", "delete it and try again")
    while header := file.read(AR_HEADER_BYTES):
        if len(header) < AR_HEADER_BYTES or header[58:60] != AR_END or not header[48:58].strip().isdigit():
            raise KernelError("read Debian package", name, "an ar header is damaged", "delete it and try again")
        size = int(header[48:58])
        start = file.tell()
        yield header[:16].decode("ascii", "replace").rstrip(" /"), io.BufferedReader(_Window(file, size), READ_BYTES)
        file.seek(start + size + size % 2)  # members begin on even offsets


@contextmanager
def _opened_tar(member: str, content: IO[bytes]) -> Iterator[tarfile.TarFile]:
    """The tar inside a data member, whatever its compression (deb(5): none, gz, xz, zst)."""
    if member.endswith(".zst"):
        with zstandard.ZstdDecompressor().stream_reader(content) as plain, \
                tarfile.open(fileobj=plain, mode="r|") as tar:
            yield tar
    else:
        with tarfile.open(fileobj=content, mode="r|*") as tar:
            yield tar


def unpack_deb(deb: Path, into: Path, place: Callable[[str], str | None]) -> list[str]:
    """Write regular files of a package below ``into``; gives the relative names written, in the package's order.

    ``place`` maps a name in the package ("boot/config-6.1...", no leading "./") to the name to write, or None to
    leave the file out.  Raises KernelError for a damaged package, OSError for a full or read-only disk.
    """
    written: list[str] = []
    try:
        with deb.open("rb") as file:
            for member, content in _members(file, deb.name):
                if not member.startswith("data.tar"):
                    continue
                with _opened_tar(member, content) as tar:
                    for entry in tar:
                        target = place(entry.name.removeprefix("./")) if entry.isreg() else None
                        source = tar.extractfile(entry) if target is not None else None
                        if target is None or source is None:
                            continue
                        path = into / target
                        path.parent.mkdir(parents=True, exist_ok=True)
                        with path.open("wb") as sink:
                            shutil.copyfileobj(source, sink, READ_BYTES)
                        written.append(target)
                return written
    except (tarfile.TarError, lzma.LZMAError, zstandard.ZstdError, EOFError) as error:
        raise KernelError("unpack Debian package", deb.name, str(error) or "it is cut short",
                          "delete it and try again") from error
    raise KernelError("unpack Debian package", deb.name, "it has no data.tar member", "delete it and try again")
