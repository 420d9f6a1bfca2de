"""What the user has set: an option of the command, else an environment variable, else config.toml, else the default.

    # ~/.config/vch/config.toml (VCH_CONFIG: another file)
    [machine]
    memory = "512m"             # VCH_MEMORY      of each machine, unless -m says otherwise
    cpus = 2                    # VCH_CPUS
    accelerator = "auto"        # VCH_ACCEL       auto, kvm or tcg
    kernel = "pico"             # VCH_KERNEL      pico or debian-cloud; default: pico where it has been built
    qemu = "qemu-system-x86_64" # VCH_QEMU        program to run
    link = "virtio-serial"      # VCH_LINK        what carries the link: virtio-serial, uart or vsock
    disk_size = "16g"           # VCH_DISK_SIZE   most that a container can write
    volume_size = "16g"         # VCH_VOLUME_SIZE of a volume that is made
    give_back = false           # VCH_GIVE_BACK   give memory that the guest frees back to the host; then it boots
    verity = false              # VCH_VERITY      check every block of an image that is read
    templates = "/dev/shm"      # VCH_TEMPLATES   folder, in memory, of what machines are cloned from; "off": they boot

The state folder is VCH_HOME, by default ~/.local/share/vch (imagebuild/home.py).  Other tables of the file are for
images and registries; imagebuild/config_file.py reads them, and only when a registry is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from imagebuild import home
from vch.errors import SettingsError
from vch.options import values
from vch.qemu.config import PROGRAM, LinkKind

T = TypeVar("T")
MIB = 1 << 20
GIB = 1 << 30

TABLE = "machine"  # of config.toml
ACCELERATORS = ("auto", "kvm", "tcg")
KERNELS = ("pico", "debian-cloud")
LINKS = tuple(kind.value for kind in LinkKind)

# Measured with Debian's cloud kernel, the larger of the two: of 256 MiB the container has 172, of 96 MiB 18.
DEFAULT_MEMORY = 256 * MIB
LEAST_MEMORY = 96 * MIB  # below this the kernel may not get as far as the container
DEFAULT_CPUS = 1  # a second one costs boot time, and much of it without KVM
DISK_SIZE = 16 * GIB  # sparse: costs what is written
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
# Clones share the memory of their template only while it is in memory itself.
TEMPLATES: Path | None = Path("/dev/shm")
NO_TEMPLATES = "off"
_REMEDY = "see docs/run.md, Settings"


class Settings(NamedTuple):
    """All settings, with defaults filled in.  Sizes in bytes."""

    home: Path
    memory: int = DEFAULT_MEMORY
    cpus: int = DEFAULT_CPUS
    accelerator: str = "auto"
    kernel: str | None = None
    qemu: str = PROGRAM
    link: LinkKind = LinkKind.VIRTIO_SERIAL
    disk_size: int = DISK_SIZE
    volume_size: int = DISK_SIZE
    verity: bool = False
    give_back: bool = False
    templates: Path | None = TEMPLATES
    """None: machines are not cloned."""

    @property
    def state(self) -> Path:
        """What may be deleted at any time: verdicts, locks."""
        return self.home / "state"


def load(environ: Mapping[str, str]) -> Settings:
    """The settings.  Raises SettingsError that names the key."""
    given = _Given(environ, _read(home.config_file(environ)))
    settings = Settings(
        home=home.home(environ),
        memory=given.value("memory", "VCH_MEMORY", _size, DEFAULT_MEMORY),
        cpus=given.value("cpus", "VCH_CPUS", _count, DEFAULT_CPUS),
        accelerator=given.value("accelerator", "VCH_ACCEL", _choice(ACCELERATORS), "auto"),
        kernel=given.value("kernel", "VCH_KERNEL", _choice(KERNELS), None),
        qemu=given.value("qemu", "VCH_QEMU", str, PROGRAM),
        link=LinkKind(given.value("link", "VCH_LINK", _choice(LINKS), LinkKind.VIRTIO_SERIAL.value)),
        disk_size=given.value("disk_size", "VCH_DISK_SIZE", _size, DISK_SIZE),
        volume_size=given.value("volume_size", "VCH_VOLUME_SIZE", _size, DISK_SIZE),
        verity=given.value("verity", "VCH_VERITY", _truth, False),
        give_back=given.value("give_back", "VCH_GIVE_BACK", _truth, False),
        templates=given.value("templates", "VCH_TEMPLATES", _templates, TEMPLATES),
    )
    given.refuse_rest()
    return settings


class _Given:
    """Environment before file; what is left of the file at the end is unknown."""

    def __init__(self, environ: Mapping[str, str], table: dict[str, Any]) -> None:
        self._environ, self._table = environ, table

    def value(self, key: str, variable: str, convert: Callable[[str], T], default: T) -> T:
        from_file = self._table.pop(key, None)
        from_environ = self._environ.get(variable)
        name, text = (variable, from_environ) if from_environ else (f"{TABLE}.{key}", from_file)
        if text is None:
            return default
        try:
            return convert(str(text))
        except ValueError as error:
            raise SettingsError("read settings", name, str(error), _REMEDY) from error

    def refuse_rest(self) -> None:
        """What nobody asked for is a mistake of the user's."""
        if self._table:
            raise SettingsError("read settings", f"{TABLE}.{min(self._table)}", "no such setting", _REMEDY)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError("read settings", str(path), getattr(error, "strerror", None) or str(error)) from error
    import tomllib  # 8 ms: only where there is a file to read

    try:
        table = tomllib.loads(text).get(TABLE, {})
    except tomllib.TOMLDecodeError as error:
        raise SettingsError("read settings", str(path), str(error), "correct the file") from error
    if not isinstance(table, dict):
        raise SettingsError("read settings", TABLE, "not a table", _REMEDY)
    return table


def _size(text: str) -> int:
    size = values.parse_size(text)
    if size <= 0:
        raise ValueError(f"invalid size: '{text}'")
    return size


def _truth(text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise ValueError(f"'{text}' is neither true nor false")
    return _TRUTHS[text.lower()]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"'{text}' is no number of processors")
    return int(text)


def _templates(text: str) -> Path | None:
    if text == NO_TEMPLATES:
        return None
    if not text.startswith("/"):
        raise ValueError(f"'{text}' is neither an absolute path nor {NO_TEMPLATES}")
    return Path(text)


def _choice(choices: tuple[str, ...]) -> Callable[[str], str]:
    def choose(text: str) -> str:
        if text not in choices:
            raise ValueError(f"'{text}' is none of {', '.join(choices)}")
        return text

    return choose
