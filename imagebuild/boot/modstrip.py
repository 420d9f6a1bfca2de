"""A kernel module without what only costs time when it is loaded: its signature and its type information.

A distribution's kernel checks the signature of every module that has one: a digest over the whole file and an RSA
operation, in a VM that has no reason to doubt the files it was booted from.  Without a signature a kernel that does not
insist on one (CONFIG_MODULE_SIG_FORCE, lockdown) loads the module and notes it ("E" among the kernel's taints).  And
it parses a module's .BTF section type by type, for BPF programs that look into that module's structures.

Formats: Documentation/admin-guide/module-signing.rst, include/linux/module_signature.h; elf(5).
"""

from __future__ import annotations

import struct

_MARK = b"~Module signature appended~\n"
_SIGNATURE = struct.Struct(">BBBBB3xI")  # struct module_signature: algo hash id_type signer_len key_id_len, sig_len
_SHOFF, _SHENTSIZE = 0x28, 0x3A  # offsets in Elf64_Ehdr: where the section headers are; their size, count, and names
_SHDR = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr: name type flags addr offset size link info align entsize
_TYPES, _HIDDEN = b".BTF\0", b".btf\0"  # the kernel asks for the first name (kernel/module/main.c)


def without_signature(module: bytes) -> bytes:
    """The module as it was before it was signed; itself if it is not signed, or what claims so makes no sense."""
    if not module.endswith(_MARK):
        return module
    at = len(module) - len(_MARK) - _SIGNATURE.size
    if at < 0:
        return module
    _, _, _, signer, key_id, length = _SIGNATURE.unpack_from(module, at)
    end: int = at - signer - key_id - length
    return module[:end] if end > 0 else module


def without_types(module: bytes) -> bytes:
    """The module with its .BTF section zeroed, and named as the kernel does not look for it; itself if it has none.

    Zeroed instead of taken out, because then nothing else moves; a compressed archive hardly sees the zeros.
    """
    try:
        (table,) = struct.unpack_from("<Q", module, _SHOFF)
        _, count, names = struct.unpack_from("<HHH", module, _SHENTSIZE)
        headers = [_SHDR.unpack_from(module, table + index * _SHDR.size) for index in range(count)]
        start, length = headers[names][4], headers[names][5]
    except (struct.error, IndexError, OverflowError):
        return module
    changed = bytearray(module)
    for name, _, _, _, offset, size, *_ in headers:
        at = start + name
        if at + len(_TYPES) <= start + length and module[at : at + len(_TYPES)] == _TYPES:
            changed[at : at + len(_HIDDEN)] = _HIDDEN
            changed[offset : offset + size] = bytes(size)
    return bytes(changed)


def stripped(module: bytes) -> bytes:
    """Both."""
    return without_types(without_signature(module))
