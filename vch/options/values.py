"""The values of options, as Docker understands them.  Every function raises ValueError with what is wrong."""

from __future__ import annotations

import ipaddress
import os
import posixpath
import re
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from vch.qemu.user_network import family

# Compiled where they are used: most command lines need none of them.
_SIZE = r"([0-9]+(?:\.[0-9]+)*) ?([kKmMgGtTpP]?)[iI]?[bB]?"
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]+"
_NAME_GRAMMAR = "[a-zA-Z0-9][a-zA-Z0-9_.-]"
_HOSTNAME = r"(?!-)[a-zA-Z0-9-]{1,63}(?<!-)(\.(?!-)[a-zA-Z0-9-]{1,63}(?<!-))*"
_REALTIME = r"RTM(IN|AX)(?:([+-])([0-9]+))?"
HOSTNAME_LIMIT = 64  # Linux, __NEW_UTS_LEN
SERVER_WORD = "addr="  # of nfs(5): where the server is, whatever the device says
HOST_GATEWAY = "host-gateway"  # Docker's word for "the host, as the container reaches it"


class VolumeMount(NamedTuple):
    """-v: the named volume `name` ("" for one of its own that ends with the machine) mounted at `path`."""

    name: str
    path: str
    read_only: bool = False
    no_copy: bool = False


class TmpfsMount(NamedTuple):
    """--tmpfs: a tmpfs at `path` with mount(8) options."""

    path: str
    options: str


class ShareMount(NamedTuple):
    """--mount with an NFS export: `device` is "[SERVER]:/EXPORT", `options` are those of nfs(5).

    `server` is the name or address of the server that they speak of.
    """

    path: str
    kind: str
    device: str
    options: str
    server: str
    read_only: bool = False


def parse_sysctl(text: str) -> tuple[str, str]:
    """KEY=VALUE.  Docker allows the parameters that have a namespace; here the kernel is the container's own."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"sysctl '{text}' is not allowed")
    return key, value


def parse_size(text: str) -> int:
    """Bytes of "512m", "1.5g", "100" ...: github.com/docker/go-units, RAMInBytes."""
    found = re.fullmatch(_SIZE, text)
    try:
        number = float(found[1]) if found else -1.0
    except ValueError:  # "1.2.3"
        number = -1.0
    if found is None or number < 0:
        raise ValueError(f"invalid size: '{text}'")
    return int(number * 1024 ** _POWERS[found[2].lower()])


def parse_cpus(text: str) -> float:
    """A positive number of processors, fractions allowed."""
    if not re.fullmatch(r"[0-9]*\.?[0-9]+|[0-9]+\.", text):
        raise ValueError(f"failed to parse {text} as a rational number")
    return float(text)


def parse_seconds(text: str) -> int:
    """Whole seconds; negative means for ever."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


def parse_signal(text: str) -> int:
    """"TERM", "SIGTERM", "15", "RTMIN+3" -> number."""
    if text.isascii() and text.isdecimal():
        number = int(text)
        if not 0 < number <= signal.SIGRTMAX:
            raise ValueError(f"invalid signal: {text}")
        return number
    name = text.upper().removeprefix("SIG")
    realtime = re.fullmatch(_REALTIME, name)
    if realtime:
        base = signal.SIGRTMIN if realtime[1] == "IN" else signal.SIGRTMAX
        number = base + int((realtime[2] or "") + (realtime[3] or "0"))
        if not signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            raise ValueError(f"invalid signal: {text}")
        return number
    if "SIG" + name not in signal.Signals.__members__:
        raise ValueError(f"invalid signal: {text}")
    return int(signal.Signals["SIG" + name])


def parse_name(text: str) -> str:
    """The name of a container."""
    if not re.fullmatch(_NAME, text):
        raise ValueError(f"Invalid container name ({text}), only {_NAME_GRAMMAR} are allowed")
    return text


def parse_hostname(text: str) -> str:
    """A host name that resolvers accept and the kernel can hold."""
    if len(text) > HOSTNAME_LIMIT or not re.fullmatch(_HOSTNAME, text):
        raise ValueError(f"invalid hostname format: {text}")
    return text


def parse_address(text: str) -> str:
    """An IP address (--dns)."""
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise ValueError(f"{text} is not an ip address") from None


def parse_mac(text: str) -> str:
    """The MAC address of one interface (--mac-address)."""
    parts = re.split("[:-]", text)
    if len(parts) != 6 or not all(re.fullmatch("[0-9a-fA-F]{2}", part) for part in parts):
        raise ValueError(f"{text} is not a valid mac address")
    if int(parts[0], 16) & 1 or not any(int(part, 16) for part in parts):
        raise ValueError(f"{text} is not the address of one interface")
    return ":".join(parts).lower()


def parse_user_ipv4(text: str) -> str:
    """--ip: an address that the container can have in the user network."""
    return _parse_user_address(text, 4)


def parse_user_ipv6(text: str) -> str:
    """--ip6: the same for IPv6."""
    return _parse_user_address(text, 6)


def _parse_user_address(text: str, version: int) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"invalid IPv{version} address: {text}") from None
    if address.version != version:
        raise ValueError(f"invalid IPv{version} address: {text}")
    return family(text).address


def parse_host(text: str) -> tuple[str, str]:
    """--add-host NAME:IP (or NAME=IP): name and address; the address may be HOST_GATEWAY."""
    separator = "=" if "=" in text else ":"
    name, _, address = text.partition(separator)
    if not name or not address:
        raise ValueError(f'bad format for add-host: "{text}"')
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if address != HOST_GATEWAY:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ValueError(f'invalid IP address in add-host: "{address}"') from None
    return name, address


def parse_env(text: str, environ: Mapping[str, str]) -> str:
    """-e NAME=VALUE, or -e NAME: the caller's value, or bare "NAME" where it has none (the image's is removed)."""
    name, equals, _ = text.partition("=")
    if not name:
        raise ValueError(f"invalid environment variable: {text}")
    return text if equals or name not in environ else f"{name}={environ[name]}"


def parse_env_file(content: str, environ: Mapping[str, str]) -> list[str]:
    """The lines of an --env-file: NAME=VALUE, NAME (the caller's value, skipped where it has none), # comments."""
    entries = []
    for line in content.removeprefix("\ufeff").split("\n"):
        entry = line.removesuffix("\r").lstrip()
        if not entry or entry.startswith("#"):
            continue
        name, equals, value = entry.partition("=")
        if not name:
            raise ValueError(f"no variable name on line '{entry}'")
        if any(character.isspace() for character in name):
            raise ValueError(f"variable '{name}' contains whitespaces")
        if equals:
            entries.append(f"{name}={value}")
        elif name in environ:
            entries.append(f"{name}={environ[name]}")
    return entries


def parse_volume(text: str) -> VolumeMount:
    """-v [NAME:]/PATH[:ro|rw|nocopy,...]."""
    name, path, flags = _volume_parts(text)
    if name:
        name = volume_name(name)
    unknown = flags - {"ro", "rw", "nocopy", "copy", "z", "Z", ""}
    if unknown or {"ro", "rw"} <= flags:
        raise ValueError(f"invalid mode: {','.join(sorted(unknown or flags))}")
    return VolumeMount(name, mount_point(path), "ro" in flags, "nocopy" in flags)


def volume_name(name: str) -> str:
    """The name of a volume, which a folder of the host is not."""
    if name.startswith(("/", ".", "~")):
        raise no_host_folders(name)
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"{name}: no name for a volume, only {_NAME_GRAMMAR} are allowed")
    return name


def no_host_folders(name: str) -> ValueError:
    """What becomes of who asks for one."""
    return ValueError(
        f"{name}: folders of the host cannot be mounted yet; name a volume instead, and it is made on first use"
    )


def _volume_parts(text: str) -> tuple[str, str, set[str]]:
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise ValueError(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        return "", parts[0], set()
    if len(parts) == 2 and not parts[1].startswith("/") and parts[0].startswith("/"):
        return "", parts[0], set(parts[1].split(","))  # "/path:ro": a volume of its own
    return parts[0], parts[1], set(parts[2].split(",")) if len(parts) == 3 else set()


def mount_point(path: str) -> str:
    """A normalised absolute path that something can be mounted at."""
    if not path.startswith("/"):
        raise ValueError(f"invalid mount path: '{path}' mount path must be absolute")
    clean = posixpath.normpath("/" + path.lstrip("/"))
    if clean == "/":
        raise ValueError("invalid specification: destination can't be '/'")
    return clean


# Pairs of mount options where the later one wins; Docker starts a tmpfs with the first of each.
_OPPOSITES = (("noexec", "exec"), ("nosuid", "suid"), ("nodev", "dev"), ("rw", "ro"))
_TMPFS_SWITCHES = frozenset(option for pair in _OPPOSITES for option in pair) | {
    "sync", "async", "atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime",
}  # fmt: skip
_TMPFS_VALUES: Mapping[str, Callable[[str], bool]] = {
    "size": lambda value: re.fullmatch(r"[0-9]+([kKmMgG%])?", value) is not None,
    "nr_inodes": lambda value: re.fullmatch(r"[0-9]+[kKmMgG]?", value) is not None,
    "nr_blocks": lambda value: re.fullmatch(r"[0-9]+[kKmMgG]?", value) is not None,
    "mode": lambda value: re.fullmatch(r"[0-7]{1,4}", value) is not None,
    "uid": lambda value: re.fullmatch(r"[0-9]+", value) is not None,
    "gid": lambda value: re.fullmatch(r"[0-9]+", value) is not None,
}


def parse_tmpfs(text: str) -> TmpfsMount:
    """--tmpfs /PATH[:options]: with Docker's defaults, and one of each pair of opposites."""
    path, _, options = text.partition(":")
    given = [option for option in options.split(",") if option]
    for option in given:
        name, equals, value = option.partition("=")
        allowed = _TMPFS_VALUES[name](value) if equals and name in _TMPFS_VALUES else option in _TMPFS_SWITCHES
        if not allowed:
            raise ValueError(f'invalid tmpfs option ["{option}"]')
    return TmpfsMount(mount_point(path), ",".join(_merged([*(first for first, _ in _OPPOSITES), *given])))


def _merged(options: Iterable[str]) -> list[str]:
    """Options with the later of two opposites, or of two values for one name, in place of the earlier."""
    kept: dict[str, str] = {}
    for option in options:
        key = option.partition("=")[0]
        for first, second in _OPPOSITES:
            if option == second:
                key = first
        kept[key] = option
    return list(kept.values())


def read_text_file(path: str) -> str:
    """A file that an option names; ValueError with the operating system's words."""
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read())
    except OSError as error:
        raise ValueError(f"open {path}: {(error.strerror or str(error)).lower()}") from error
