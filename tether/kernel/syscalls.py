"""The system calls that Python has no name for.

Through `_ctypes`, the extension under the module ctypes: importing the latter executes 12 million instructions (about
0.1 s of a cold boot without KVM), what is used of it here is a tenth.  Constants are named as in the kernel's headers
(linux/mount.h, linux/openat2.h, linux/reboot.h).  Every function raises OSError with the name of its object.
"""

import os
import struct
from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, CFuncPtr, _SimpleCData, dlopen, dlsym, get_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

CLONE_FS = 0x00000200  # linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

RB_AUTOBOOT = 0x01234567
RB_POWER_OFF = 0x4321FEDC
RB_DISABLE_CAD = 0

RLIMIT_NOFILE = 7
RLIM_SPAN = 1 << 64  # RLIM_INFINITY is one less

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h

PAGE = 4096  # mount(2) takes one page of options and cuts the rest off in silence

PR_CAPBSET_DROP = 24  # linux/prctl.h
PR_SET_KEEPCAPS = 8
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2

_CAPABILITY_VERSION = 0x20080522  # linux/capability.h: sets of 64 bits, low words of all three first
_WORD = 0xFFFFFFFF
_SYS_CAPSET = 126  # x86-64; asm/unistd_64.h
_SYS_SETGROUPS = 116
_SYS_SETRESUID = 117
_SYS_SETRESGID = 119
_SYS_ADJTIMEX = 159
_SYS_FINIT_MODULE = 313
_SYS_OPENAT2 = 437


class _Long(_SimpleCData):  # type: ignore[type-arg]  # not generic at run time
    """C's long: a plain Python int would be passed as an int."""

    _type_ = "l"


class _Function(CFuncPtr):
    """A function of the C library that returns a long and sets errno."""

    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _Long


_LIBC = dlopen(None, 0)  # type: ignore[arg-type]  # None is the running program, as for dlopen(3)
_mount = _Function(dlsym(_LIBC, "mount"))
_setns = _Function(dlsym(_LIBC, "setns"))
_umount2 = _Function(dlsym(_LIBC, "umount2"))
_prctl = _Function(dlsym(_LIBC, "prctl"))
_prlimit = _Function(dlsym(_LIBC, "prlimit"))
_mallopt = _Function(dlsym(_LIBC, "mallopt"))
_reboot = _Function(dlsym(_LIBC, "reboot"))
_syscall = _Function(dlsym(_LIBC, "syscall"))
_unshare = _Function(dlsym(_LIBC, "unshare"))


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2).  Raises OSError with the target as its file name; EINVAL for options that would be cut off."""
    data = os.fsencode(options)
    if len(data) >= PAGE:
        raise OSError(7, f"{len(data)} bytes of mount options do not fit into a page", target)
    if _int(_mount(os.fsencode(source), os.fsencode(target), kind.encode(), _Long(flags), data)) < 0:
        raise _error(target)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    if _int(_umount2(os.fsencode(target), flags)) < 0:
        raise _error(target)


def openat2(folder: int, path: bytes, flags: int, resolve: int) -> int:
    """openat2(2): a descriptor (close-on-exec) of `path` below `folder`, resolved as `resolve` says."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    handle = _int(_syscall(_Long(_SYS_OPENAT2), folder, path, how, _Long(len(how))))
    if handle < 0:
        raise _error(path)
    return handle


def finit_module(handle: int, name: str) -> None:
    """finit_module(2): loads the kernel module that is open as `handle`."""
    if _int(_syscall(_Long(_SYS_FINIT_MODULE), handle, b"", 0)) < 0:
        raise _error(name)


def adjtimex(timex: bytes) -> None:
    """adjtimex(2) with a struct timex, into which the kernel writes: give it one that nobody else has."""
    if _int(_syscall(_Long(_SYS_ADJTIMEX), timex)) < 0:
        raise _error("clock")


def set_limit(resource: int, soft: int, hard: int) -> None:
    """setrlimit(2); -1 is no limit (the module resource is a shared object more to load)."""
    limits = struct.pack("QQ", soft % RLIM_SPAN, hard % RLIM_SPAN)
    if _int(_prlimit(0, resource, limits, None)) < 0:
        raise _error(f"limit {resource}")


def prctl(option: int, value: int, third: int = 0) -> None:
    """prctl(2) with numbers of less than 32 bits: as plain ints they cost a fifth, and libffi extends them to longs."""
    if _int(_prctl(option, value, third, 0, 0)) < 0:
        raise _error(f"prctl {option}")


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of the calling process, sets as bits."""
    sets = (effective, permitted, inheritable)
    words = [*(item & _WORD for item in sets), *(item >> 32 for item in sets)]
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    if _int(_syscall(_Long(_SYS_CAPSET), header, struct.pack("6I", *words))) < 0:
        raise _error("capabilities")


def unshare(what: int) -> None:
    """unshare(2): namespaces, or a root and directory, of the caller's own; with CLONE_NEWPID of its next children."""
    if _int(_unshare(what)) < 0:
        raise _error(f"namespace {what:#x}")


def setns(handle: int, what: int) -> None:
    """setns(2): moves the caller into the namespace that is open as `handle`; with CLONE_NEWPID its next children."""
    if _int(_setns(handle, what)) < 0:
        raise _error(f"namespace {what:#x}")


def set_groups(groups: tuple[int, ...]) -> None:
    """setgroups(2) of the calling thread alone: the C library's would set those of every thread."""
    if _int(_syscall(_Long(_SYS_SETGROUPS), _Long(len(groups)), struct.pack(f"{len(groups)}I", *groups))) < 0:
        raise _error("groups of a user")


def set_gid(gid: int) -> None:
    """setresgid(2) of the calling thread alone."""
    if _int(_syscall(_Long(_SYS_SETRESGID), _Long(gid), _Long(gid), _Long(gid))) < 0:
        raise _error(f"group {gid}")


def set_uid(uid: int, saved: int) -> None:
    """setresuid(2) of the calling thread alone, which with 0 as the `saved` one can come back to be root."""
    if _int(_syscall(_Long(_SYS_SETRESUID), _Long(uid), _Long(uid), _Long(saved))) < 0:
        raise _error(f"user {uid}")


def mallopt(parameter: int, value: int) -> None:
    """mallopt(3), of the C library and not of the kernel.  What it refuses stays as it was."""
    _mallopt(_Long(parameter), _Long(value))


def reboot(command: int) -> None:
    """reboot(2).  RB_POWER_OFF and RB_AUTOBOOT do not return."""
    if _int(_reboot(_Long(command))) < 0:
        raise _error("reboot")


def _int(value: "Any") -> int:
    """The number in what a foreign function gave back as its return type.

    Only its lower half counts: a function that returns an int leaves the upper half of the register as it was, and
    its -1 would be no negative long.  None of ours returns a number of more than 31 bits.
    """
    low = int(value) & _WORD
    return low - _WORD - 1 if low > _WORD >> 1 else low


def _error(name: "str | bytes") -> OSError:
    number = get_errno()
    return OSError(number, os.strerror(number), name)
