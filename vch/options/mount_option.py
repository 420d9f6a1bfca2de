"""--mount: what is mounted where, as docker/cli (opts/mount.go) reads it, with its messages and the daemon's.

    type=volume,src=NAME,dst=/PATH,readonly,volume-nocopy
    type=volume,dst=/PATH,volume-opt=type=nfs,volume-opt=device=:/EXPORT,"volume-opt=o=addr=HOST,nfsvers=4.1"
    type=tmpfs,dst=/PATH,tmpfs-size=64m,tmpfs-mode=1770

The value is one record of CSV, so that a field may have commas: "a ""quoted"" field".  Every function raises
ValueError with what is wrong.  Imported for who gives the option.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vch.options.pflag import FALSE_WORDS, TRUE_WORDS
from vch.options.values import (
    SERVER_WORD,
    ShareMount,
    TmpfsMount,
    VolumeMount,
    mount_point,
    no_host_folders,
    parse_size,
    parse_tmpfs,
    volume_name,
)

NFS = ("nfs", "nfs4")  # file systems that the local driver can be told of, of those that Docker's can
LOCAL = "local"
_READ_ONLY = ("readonly", "ro")
_ALONE = (*_READ_ONLY, "volume-nocopy", "bind-nonrecursive")  # fields that need no value
_BIND_KEYS = ("bind-propagation", "bind-nonrecursive")
_LOCAL_OPTIONS = ("type", "o", "device")  # of the local driver; "size" is for file systems with quotas
_MODE_LIMIT = 1 << 32


@dataclass
class _Said:
    """The fields of one value."""

    kind: str = "volume"
    source: str = ""
    target: str = ""
    read_only: bool = False
    no_copy: bool = False
    driver: str = ""
    driver_options: dict[str, str] = field(default_factory=dict)
    tmpfs: dict[str, str] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)  # "volume", "bind", "tmpfs": whose options there are


def parse_mount(text: str) -> VolumeMount | TmpfsMount | ShareMount:
    """One --mount."""
    said = _Said()
    for one in csv_fields(text):
        _take(said, one)
    if not said.kind:
        raise ValueError("type is required")
    if not said.target:
        raise ValueError("target is required")
    for group in ("volume", "bind", "tmpfs"):
        if group in said.groups and said.kind != group:
            raise ValueError(f"cannot mix '{group}-*' options with mount type '{said.kind}'")
    if said.kind == "bind":
        raise no_host_folders(said.source)
    if said.kind not in ("volume", "tmpfs"):
        raise _invalid(said, "mount type unknown")
    try:
        path = mount_point(said.target)
    except ValueError as error:
        raise _invalid(said, str(error)) from error
    if said.kind == "tmpfs":
        return _tmpfs(said, path)
    return _share(said, path) if said.driver_options else _volume(said, path)


def csv_fields(text: str) -> list[str]:
    """The fields of the first record of CSV, as Go's encoding/csv reads it: RFC 4180, quotes only where they belong."""
    fields, at = [], 0
    text = text.lstrip("\r\n")
    if not text:
        raise ValueError("EOF")
    while True:
        value, at = _quoted(text, at + 1) if text.startswith('"', at) else _plain(text, at)
        fields.append(value)
        if text[at : at + 1] != ",":
            return fields
        at += 1


def _plain(text: str, at: int) -> tuple[str, int]:
    """A field without quotes, and where it ends."""
    end = min(found for found in (text.find(",", at), text.find("\n", at), len(text)) if found >= 0)
    value = text[at:end].removesuffix("\r")
    if '"' in value:
        raise ValueError(f'parse error on line 1, column {at + value.index(chr(34)) + 1}: bare " in non-quoted field')
    return value, end


def _quoted(text: str, at: int) -> tuple[str, int]:
    """A field in quotes, from behind the first one, and where it ends."""
    value = ""
    while (end := text.find('"', at)) >= 0:
        value += text[at:end]
        after = text[end + 1 : end + 2]
        if after != '"':
            if after not in ("", ",", "\r", "\n"):
                raise ValueError(f'parse error on line 1, column {end + 1}: extraneous or missing " in quoted-field')
            return value, end + 1
        value += '"'
        at = end + 2
    raise ValueError(f'parse error on line 1, column {len(text) + 1}: extraneous or missing " in quoted-field')


def _take(said: _Said, text: str) -> None:
    """Takes in one field."""
    key, equals, value = text.partition("=")
    if not equals and key not in _ALONE:
        raise ValueError(f"invalid field '{text}' must be a key=value pair")
    group = key.partition("-")[0]
    if key == "type":
        said.kind = value.lower()
    elif key in ("source", "src"):
        said.source = value
    elif key in ("target", "dst", "destination"):
        said.target = value
    elif key in _READ_ONLY:
        said.read_only = _truth(key, value, bare=not equals)
    elif key == "volume-nocopy":
        said.no_copy = _truth(key, value, bare=not equals)
    elif key == "volume-driver":
        said.driver = value
    elif key == "volume-opt":
        name, _, what = value.partition("=")
        if name:
            said.driver_options[name] = what
    elif key in ("tmpfs-size", "tmpfs-mode"):
        said.tmpfs[_word(key)] = _tmpfs_value(key, value)
    elif key not in (*_BIND_KEYS, "consistency"):
        raise ValueError(f"unexpected key '{key}' in '{text}'")
    if group in ("volume", "bind", "tmpfs"):
        said.groups.add(group)


def _word(key: str) -> str:
    """What of "tmpfs-size" the file system itself calls it: "size"."""
    return key.partition("-")[2]


def _truth(key: str, value: str, *, bare: bool) -> bool:
    if bare or value in TRUE_WORDS:
        return True
    if value in FALSE_WORDS:
        return False
    raise ValueError(f"invalid value for {key}: {value}")


def _tmpfs_value(key: str, value: str) -> str:
    """As the kernel takes it."""
    try:
        if key == "tmpfs-size":
            return str(parse_size(value))
        mode = int(value, 8) if value.isascii() and value.isdecimal() else -1
    except ValueError:
        mode = -1
    if not 0 <= mode < _MODE_LIMIT:
        raise ValueError(f"invalid value for {key}: {value}")
    return f"{mode:o}"


def _tmpfs(said: _Said, path: str) -> TmpfsMount:
    if said.source:
        raise _invalid(said, "field Source must not be specified")
    words = [f"{name}={value}" for name, value in said.tmpfs.items() if value != "0"]  # 0 is Docker's "not said"
    try:
        return parse_tmpfs(f"{path}:{','.join(['ro'] * said.read_only + words)}")
    except ValueError as error:
        raise _invalid(said, str(error)) from error


def _volume(said: _Said, path: str) -> VolumeMount:
    _check_driver(said)
    if not said.source:
        if said.read_only:
            raise _invalid(said, "must not set ReadOnly mode when using anonymous volumes")
        return VolumeMount("", path, no_copy=said.no_copy)
    return VolumeMount(volume_name(said.source), path, said.read_only, said.no_copy)


def _share(said: _Said, path: str) -> ShareMount:
    """A volume of the local driver that is an NFS export.  A name that it is given is kept nowhere."""
    _check_driver(said)
    options = said.driver_options
    for name in options:
        if name not in _LOCAL_OPTIONS:
            raise ValueError(f'invalid option: "{name}"')
    _require(options, "type", "device")
    if options["type"] not in NFS:
        raise ValueError(f"volume-opt=type={options['type']}: only nfs and nfs4 can be mounted")
    device, words = options["device"], options.get("o", "")
    if ":/" not in device:
        raise ValueError(f"volume-opt=device={device}: an NFS export is written [SERVER]:/PATH")
    server = _server(device, words)
    if not server:
        raise ValueError('the NFS server is not named: add "volume-opt=o=addr=HOST"')
    return ShareMount(path, options["type"], device, words, server, said.read_only)


def _server(device: str, words: str) -> str:
    """The last that the options name, else that in "SERVER:/EXPORT"."""
    said = [word for word in words.split(",") if word.startswith(SERVER_WORD)]
    return said[-1].removeprefix(SERVER_WORD) if said else device[: device.index(":/")]


def _require(options: Mapping[str, str], *names: str) -> None:
    for name in names:
        if not options.get(name):
            raise ValueError(f'missing required option: "{name}"')


def _check_driver(said: _Said) -> None:
    if said.driver not in ("", LOCAL):
        raise ValueError(f'error looking up volume plugin {said.driver}: plugin "{said.driver}" not found')


def _invalid(said: _Said, why: str) -> ValueError:
    return ValueError(f'invalid mount config for type "{said.kind}": {why}')
