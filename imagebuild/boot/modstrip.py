"""A kernel module without what only costs time when it is loaded: its signature, its type information, and the tables
by which its stack frames are found.

A distribution's kernel checks the signature of every module that has one: a digest over the whole file and an RSA
operation, in a VM that has no reason to doubt the files it was booted from.  Without a signature a kernel that does not
insist on one (CONFIG_MODULE_SIG_FORCE, lockdown) loads the module and notes it ("E" among the kernel's taints).  And
it parses a module's .BTF section type by type, for BPF programs that look into that module's structures.  And it sorts
a module's .orc_unwind tables, which are as large as its code: without them a stack trace that begins in a module is a
guess, as every line of it is in the pico kernel.

Formats: Documentation/admin-guide/module-signing.rst, include/linux/module_signature.h; elf(5).
"""

from __future__ import annotations

import struct

_MARK = b"~Module signature appended~\n"
_SIGNATURE = struct.Struct(">BBBBB3xI")  # struct module_signature: algo hash id_type signer_len key_id_len, sig_len
_SHOFF, _SHENTSIZE = 0x28, 0x3A  # offsets in Elf64_Ehdr: where the section headers are; their size, count, and names
_SHDR = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr: name type flags addr offset size link info align entsize
_FLAGS = 8  # offset of sh_flags in it
_SHF_ALLOC = 2  # the section is to be in memory; what is not is neither loaded nor relocated
# The kernel asks for these by name (kernel/module/main.c, arch/x86/kernel/module.c).
_UNWANTED = (b".BTF", b".orc_unwind", b".orc_unwind_ip", b".rela.orc_unwind_ip")


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


def without_tables(module: bytes) -> bytes:
    """The module with its unwanted sections zeroed, and named as the kernel does not look for them; itself if it has
    none of them.

    Zeroed instead of taken out, because then nothing else moves; a compressed archive hardly sees the zeros.
    """
    try:
        (table,) = struct.unpack_from("<Q", module, _SHOFF)
        _, count, names = struct.unpack_from("<HHH", module, _SHENTSIZE)
        headers = [_SHDR.unpack_from(module, table + index * _SHDR.size) for index in range(count)]
        start = headers[names][4]
        called = [module[start + name : module.index(b"\0", start + name)] for name, *_ in headers]
    except (struct.error, IndexError, ValueError, OverflowError):
        return module
    changed = bytearray(module)
    for index, (name, (at, _, flags, _, offset, size, *_)) in enumerate(zip(called, headers, strict=True)):
        if name in _UNWANTED:
            changed[start + at : start + at + len(name)] = name.swapcase()
            changed[offset : offset + size] = bytes(size)
            struct.pack_into("<Q", changed, table + index * _SHDR.size + _FLAGS, flags & ~_SHF_ALLOC)
    return bytes(changed)


def stripped(module: bytes) -> bytes:
    """Both."""
    return without_tables(without_signature(module))
