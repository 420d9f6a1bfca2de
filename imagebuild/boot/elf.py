"""What a dynamically linked ELF program needs: its loader and its libraries, read without running it.

ldd(1) may execute the file it is asked about, and it asks the host's loader; the initramfs wants the answer for files
that were only unpacked.  Format: elf(5).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from imagebuild.errors import InitramfsError

_ELF64_LE = b"\x7fELF\x02\x01"
_PHDR = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr: type flags offset vaddr paddr filesz memsz align
_DYN = struct.Struct("<qQ")  # Elf64_Dyn: tag value
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SONAME = 0, 1, 5, 14


Header = tuple[int, int, int, int, int, int, int, int]  # the fields of _PHDR


class Elf:
    """The dynamic part of one ELF file.  Raises InitramfsError if it has none or is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = path.read_bytes()
        try:
            self._read()
        except (struct.error, IndexError, ValueError, OverflowError) as error:
            raise InitramfsError("read ELF file", str(path), str(error), "reinstall the package it is from") from error

    def _read(self) -> None:
        if not self._data.startswith(_ELF64_LE):
            raise ValueError("it is not a 64-bit little-endian ELF file")
        (table,) = struct.unpack_from("<Q", self._data, 32)
        size, count = struct.unpack_from("<HH", self._data, 54)
        headers: list[Header] = [_PHDR.unpack_from(self._data, table + size * index) for index in range(count)]
        self._loads = [(vaddr, offset, filesz) for kind, _, offset, vaddr, _, filesz, *_ in headers if kind == _PT_LOAD]
        self.loader = next((self._string(offset) for kind, _, offset, *_ in headers if kind == _PT_INTERP), None)
        dynamic = list(self._dynamic(headers))
        strings = next((self._offset(value) for tag, value in dynamic if tag == _DT_STRTAB), 0)
        self.needed = tuple(self._string(strings + value) for tag, value in dynamic if tag == _DT_NEEDED)
        sonames = [self._string(strings + value) for tag, value in dynamic if tag == _DT_SONAME]
        self.soname = sonames[0] if sonames else self.path.name

    def _dynamic(self, headers: list[Header]) -> Iterator[tuple[int, int]]:
        for kind, _, offset, _, _, filesz, *_ in headers:
            if kind == _PT_DYNAMIC:
                for tag, value in _DYN.iter_unpack(self._data[offset:offset + filesz]):
                    if tag == _DT_NULL:
                        return
                    yield tag, value

    def _offset(self, address: int) -> int:
        """Where in the file a virtual address is."""
        for vaddr, offset, size in self._loads:
            if vaddr <= address < vaddr + size:
                return offset + address - vaddr
        raise ValueError(f"address {address:#x} is in no segment")

    def _string(self, offset: int) -> str:
        return self._data[offset:self._data.index(b"\0", offset)].decode()


def libraries(programs: list[Path], find: Callable[[str], Path]) -> dict[str, Path]:
    """soname -> file of every library that `programs` load, directly or through another one.

    `find` maps a soname to its file.
    """
    found: dict[str, Path] = {}
    waiting = [name for program in programs for name in Elf(program).needed]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = find(name)
            waiting += Elf(found[name]).needed
    return found
