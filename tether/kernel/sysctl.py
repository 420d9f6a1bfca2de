"""Kernel parameters: what the spec asks for, written to /proc/sys.  Imported late: few specs ask for any."""

import errno
import os

from tether.faults import TetherError
from tether.spec import Sysctl

_FOLDER = "/proc/sys"
_HINTS = {
    errno.ENOENT: "this kernel has no such parameter; /proc/sys shows what it has",
    errno.EINVAL: "the parameter cannot have this value",
    errno.ERANGE: "the parameter cannot have this value",
    errno.EACCES: "the parameter can only be read",
    errno.EPERM: "the parameter can only be read",
    errno.EISDIR: "that is a folder of parameters, not one",
}


def set_parameters(wanted: tuple[Sysctl, ...]) -> None:
    """Sets them in order.  Raises TetherError that names the key."""
    for one in wanted:
        path = parameter_path(one.key)
        try:
            _write(path, one.value.encode())
        except OSError as error:
            number = error.errno or 0
            raise TetherError(f"sysctl {one.key}={one.value}", os.strerror(number), number,
                              _HINTS.get(number, "")) from error


def _write(path: str, value: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, value)
    finally:
        os.close(handle)


def parameter_path(key: str) -> str:
    """The file of a parameter, by the rule of sysctl.d(5): the first separator says which one it is.

    With dots as separators a slash stands for a dot in a name ("net.ipv4.conf.eth0/100.forwarding").
    Raises TetherError.
    """
    dot, slash = key.find("."), key.find("/")
    if dot >= 0 and (slash < 0 or dot < slash):
        key = key.translate({ord("."): "/", ord("/"): "."})
    parts = key.split("/")
    if not all(parts) or "." in parts or ".." in parts or "\0" in key:
        raise TetherError(f"sysctl {key}", "is no name of a parameter", errno.EINVAL,
                          "a name looks like net.core.somaxconn")
    return "/".join([_FOLDER, *parts])
