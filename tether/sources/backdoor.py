"""VMware's backdoor: an I/O port that the hypervisor answers with all registers.  Imported late, only on x86-64.

The guest executes `in eax, dx` with a magic number in eax and a command in ecx, and finds the answer in the registers.
Python cannot do that, and /dev/port neither, so a few instructions of machine code do.  On it is GuestRPC, requests and
answers as text, four bytes at a time; there is a faster way, which a kilobyte does not need.

No specification is public.  Numbers: open-vm-tools, lib/include/backdoor_def.h and guest_msg_def.h.
"""

import os
import struct
from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, Array, CFuncPtr, _SimpleCData, dlopen, dlsym, get_errno

from tether.faults import TetherError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Registers = tuple[int, int, int, int]  # eax, ebx, ecx, edx
    Knock = Callable[[int, int, int], Registers]

_MAGIC = 0x564D5868  # "VMXh"
_PORT = 0x5658
_GET_VERSION, _MESSAGE = 10, 30  # commands
_OPEN, _SEND_SIZE, _SEND, _RECEIVE_SIZE, _RECEIVE, _RECEIVED, _CLOSE = range(7)  # upper half of ecx
_RPCI = 0x49435052  # "RPCI": the protocol that `open` asks for
_SUCCESS, _HAS_ANSWER = 1, 2  # of the status, in the upper half of ecx
_MOST_BYTES = 1 << 20  # of an answer; the hypervisor itself keeps less
_REMEDY = "give the spec in another way, see docs/agent.md"

# push rbx; mov r8, rdi; eax, ebx, ecx, edx from [r8]; in eax, dx; and back; pop rbx; ret
_CODE = bytes.fromhex("53 4989f8 418b00 418b5804 418b4808 418b500c 31f6 31ff ed"
                      " 418900 41895804 41894808 4189500c 5b c3")  # fmt: skip
_PROT_READ, _PROT_EXEC, _MAP_PRIVATE = 1, 4, 2  # asm-generic/mman-common.h
_PAGE = 4096
_ALL_PORTS, _NO_PORTS = 3, 0  # iopl(2)


class Rpc:
    """An open channel of GuestRPC.  `knock` takes ebx, ecx and edx, and gives all four registers back."""

    def __init__(self, knock: "Knock", channel: int) -> None:
        """Comes from `open_rpc`."""
        self._knock, self._channel = knock, channel

    def ask(self, request: bytes) -> bytes:
        """Sends a request; the answer.  Raises TetherError."""
        self._do(_SEND_SIZE, len(request))
        for at in range(0, len(request), 4):
            self._do(_SEND, int.from_bytes(request[at : at + 4], "little"))
        status, identity, size = self._do(_RECEIVE_SIZE, 0)
        if not status & _HAS_ANSWER or size > _MOST_BYTES:
            raise TetherError("VMware's GuestRPC", f"no answer: status {status:#x}, {size} bytes", hint=_REMEDY)
        words = [self._do(_RECEIVE, identity)[2] for _ in range(0, size, 4)]
        self._do(_RECEIVED, identity)
        return b"".join(word.to_bytes(4, "little") for word in words)[:size]

    def close(self) -> None:
        """Ends the channel."""
        self._do(_CLOSE, 0)

    def _do(self, step: int, value: int) -> tuple[int, int, int]:
        """Status, the upper half of edx, and ebx."""
        _, ebx, ecx, edx = self._knock(value, step << 16 | _MESSAGE, self._channel << 16 | _PORT)
        status = ecx >> 16
        if not status & _SUCCESS:
            raise TetherError("VMware's GuestRPC", f"step {step}: status {status:#x}", hint=_REMEDY)
        return status, edx >> 16, ebx


def find_rpc() -> Rpc | None:
    """A channel to the hypervisor this VM is on; None if it has none."""
    knock = knocker() if os.uname().machine == "x86_64" else None
    return None if knock is None else open_rpc(knock)


def open_rpc(knock: "Knock") -> Rpc | None:
    """A channel; None where nobody offers one.  (QEMU's vmport says that it is VMware, and knows no messages.)"""
    if not answers(knock):
        return None
    _, _, ecx, edx = knock(_RPCI, _OPEN << 16 | _MESSAGE, _PORT)
    return Rpc(knock, edx >> 16) if ecx >> 16 & _SUCCESS else None


def answers(knock: "Knock") -> bool:
    """Whether there is a backdoor.  An I/O port where nobody is gives all ones, and leaves the other registers."""
    return knock(0, _GET_VERSION, _PORT)[1] == _MAGIC


class _Int(_SimpleCData):  # type: ignore[type-arg]  # not generic at run time
    """C's unsigned int."""

    _type_ = "I"


class _Long(_SimpleCData):  # type: ignore[type-arg]
    """C's long: a plain Python int would be passed as an int."""

    _type_ = "l"


class _Four(Array):  # type: ignore[type-arg]
    """The registers."""

    _type_ = _Int
    _length_ = 4


class _Function(CFuncPtr):
    """A function that returns a long and sets errno."""

    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _Long


def knocker() -> "Knock | None":
    """The instructions as a function, in a page of their own; None if the kernel does not let us at the ports.

    The page stays until the VM ends: this is done once.
    """
    libc = dlopen(None, 0)  # type: ignore[arg-type]  # None is the running program, as for dlopen(3)
    iopl = _Function(dlsym(libc, "iopl"))
    if int(iopl(_ALL_PORTS)) < 0:
        return None
    iopl(_NO_PORTS)
    file = os.memfd_create("backdoor", os.MFD_CLOEXEC)
    try:
        os.write(file, _CODE)
        map_ = _Function(dlsym(libc, "mmap"))
        page = int(map_(None, _Long(_PAGE), _PROT_READ | _PROT_EXEC, _MAP_PRIVATE, file, _Long(0)))
        if page == -1:
            raise OSError(get_errno(), os.strerror(get_errno()), "backdoor")
    finally:
        os.close(file)
    code = _Function(page)

    def knock(ebx: int, ecx: int, edx: int) -> "Registers":
        registers = _Four(_MAGIC, ebx, ecx, edx)
        iopl(_ALL_PORTS)
        code(registers)
        iopl(_NO_PORTS)  # processes inherit what PID 1 may
        return struct.unpack("=4I", bytes(registers))

    return knock
