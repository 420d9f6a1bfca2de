"""What Linux derives from its memory when it boots, and leaves as it is when more memory is plugged in.

A VM that gets most of its memory before it is told what to run should be like one that booted with all of it.
"""

from tether.kernel import files
from tether.kernel.syscalls import set_limit

_THREADS = "kernel/threads-max"
_THREAD_KIB = 128  # of memory for each thread that there may be (kernel/fork.c, set_max_threads)
_SHARES = ("fs/file-max", "net/ipv4/tcp_mem", "net/ipv4/udp_mem")  # other shares of the memory: one number, or three
_OF_HALF_THE_THREADS = (6, 11)  # RLIMIT_NPROC, RLIMIT_SIGPENDING (fork_init); children inherit PID 1's


def derive_anew(memory_kib: int) -> None:
    """Raises all of it to what fits `memory_kib`.  Raises OSError."""
    before, now = int(_read(_THREADS)), memory_kib // _THREAD_KIB
    for name in _SHARES:
        _write(name, scaled(_read(name), before, now))
    _write(_THREADS, b"%d" % now)
    for limit in _OF_HALF_THE_THREADS:
        set_limit(limit, now // 2, now // 2)


def scaled(numbers: bytes, before: int, now: int) -> bytes:
    """Numbers apart by white space, each as much larger as `now` is than `before`."""
    return b" ".join(b"%d" % (int(number) * now // before) for number in numbers.split())


def _read(name: str) -> bytes:
    return files.read(f"/proc/sys/{name}", files.SETTING)


def _write(name: str, value: bytes) -> None:
    files.write(f"/proc/sys/{name}", value)
