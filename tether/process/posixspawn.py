"""posix_spawn(3): a program as a new process, without a copy of the memory of the one that starts it.

The child borrows the memory of the calling thread, which stands still until the child has executed the program (vfork);
other threads go on.  Not os.posix_spawn, which keeps all of them from executing Python meanwhile.
"""

import os
from _ctypes import FUNCFLAG_CDECL, Array, CFuncPtr, _SimpleCData, dlopen, dlsym

_ATTRIBUTES_BYTES, _ACTIONS_BYTES = 336, 80  # posix_spawnattr_t and posix_spawn_file_actions_t of glibc on x86-64
_SIGNAL_SET_BYTES = 128  # sigset_t
_PID_BYTES = 4  # pid_t
_SET_DEFAULT_SIGNALS, _SET_SIGNAL_MASK, _NEW_SESSION = 0x04, 0x08, 0x80  # spawn.h
_PATH = b"PATH"
_ROOT = (b"", b"/")


class _Int(_SimpleCData):  # type: ignore[type-arg]  # not generic at run time
    """C's int."""

    _type_ = "i"


class _String(_SimpleCData):  # type: ignore[type-arg]
    """C's char *."""

    _type_ = "z"


class _Function(CFuncPtr):
    """A function that returns an error number.  While it is called other threads execute Python."""

    _flags_ = FUNCFLAG_CDECL
    _restype_ = _Int


class _Vector(Array):  # type: ignore[type-arg]
    """C's char *[], null pointers at its end; long enough for nearly everybody: to make a type takes as long as to
    start a process."""

    _type_ = _String
    _length_ = 256


_LIBC = dlopen(None, 0)  # type: ignore[arg-type]  # None is the running program, as for dlopen(3)
_posix_spawnp = _Function(dlsym(_LIBC, "posix_spawnp"))
_attributes_init = _Function(dlsym(_LIBC, "posix_spawnattr_init"))
_set_flags = _Function(dlsym(_LIBC, "posix_spawnattr_setflags"))
_set_defaults = _Function(dlsym(_LIBC, "posix_spawnattr_setsigdefault"))
_actions_init = _Function(dlsym(_LIBC, "posix_spawn_file_actions_init"))
_add_dup2 = _Function(dlsym(_LIBC, "posix_spawn_file_actions_adddup2"))
_add_chdir = _Function(dlsym(_LIBC, "posix_spawn_file_actions_addchdir_np"))
_actions_destroy = _Function(dlsym(_LIBC, "posix_spawn_file_actions_destroy"))


class ProgramSpawner:
    """Starts programs as leaders of sessions of their own, with no signal blocked or ignored.  For one thread."""

    def __init__(self) -> None:
        # The C library writes into these, and nobody else has them.
        self._attributes, self._actions = bytes(_ATTRIBUTES_BYTES), bytes(_ACTIONS_BYTES)
        self._path: bytes | None = None  # what the C library was told last
        _attributes_init(self._attributes)
        _set_flags(self._attributes, _SET_DEFAULT_SIGNALS | _SET_SIGNAL_MASK | _NEW_SESSION)
        # All, also the two that the C library keeps for itself: it would leave those ignored.
        _set_defaults(self._attributes, b"\xff" * _SIGNAL_SET_BYTES)

    def spawn(self, args: tuple[bytes, ...], env: dict[bytes, bytes], cwd: bytes, stdio: list[int]) -> int:
        """The PID of the program, in `cwd` and with the descriptors `stdio` as 0, 1, 2.

        A name without a slash is looked for in PATH of `env`.  Paths are followed by the child, from the caller's root.
        Raises OSError, whatever of this has failed, and ValueError for what no C string can be.
        """
        variables = [b"%b=%b" % item for item in env.items()]
        if not args or not args[0] or b"\0" in b"".join((*args, *variables, cwd)):
            raise ValueError("no program, or a null byte")
        path = env.get(_PATH, b"")
        if path != self._path:
            os.putenv(_PATH, path)  # the search goes by the environment of the caller, which has no other use for it
            self._path = path
        _actions_init(self._actions)
        try:
            for number, handle in enumerate(stdio):
                _add_dup2(self._actions, handle, number)
            if cwd not in _ROOT:
                _add_chdir(self._actions, cwd)
            pid = bytes(_PID_BYTES)
            failed = _posix_spawnp(pid, args[0], self._actions, self._attributes,
                                   _vector(args), _vector(variables))
        finally:
            _actions_destroy(self._actions)
        if failed:
            raise OSError(failed, os.strerror(failed), args[0])
        return int.from_bytes(pid, "little")


def _vector(items: "tuple[bytes, ...] | list[bytes]") -> "Array[_String]":
    """C's char *[], with a null pointer at its end."""
    if len(items) < _Vector._length_:
        return _Vector(*items)
    kind: type[Array[_String]] = type("Vector", (Array,), {"_type_": _String, "_length_": len(items) + 1})
    return kind(*items)
