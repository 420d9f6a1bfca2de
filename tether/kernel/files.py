"""Reading and writing the small files of /proc and /sys: one open, one read or write, no text layer."""

import os

SMALL = 65536  # no file of /proc or /sys that is read here is longer
SETTING = 4000  # nor a setting in /proc/sys: Linux takes a buffer as large as what is asked for there, and clears it


def read(path: str, most: int = SMALL) -> bytes:
    """What a small file says."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(handle, most)
    finally:
        os.close(handle)


def read_if_there(path: str) -> bytes | None:
    """What a small file says, or None if there is no such file."""
    try:
        return read(path)
    except FileNotFoundError:
        return None


def write(path: str, content: bytes) -> None:
    """Writes to an existing file (a setting of the kernel), or a new one of mode 0644."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(handle, content)
    finally:
        os.close(handle)
