"""What an image wants whose command is an init system: PIDs of its own, fresh memory for /run, the right stop signal.

As Podman does it (podman-run(1), --systemd), and by systemd's word on containers (systemd.io/CONTAINER_INTERFACE):
it wants to be PID 1, an empty /run, a writable cgroup tree (which every container here has), and `container` in its
environment, without which it takes itself to be on bare metal; SIGRTMIN+3 asks it to halt.  The user's and the image's
own word counts more, for each of these.
"""

from __future__ import annotations

import enum
import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vch.errors import UsageError
from vch.options.values import TmpfsMount, parse_signal

if TYPE_CHECKING:
    from imagebuild.oci.imageconfig import RunConfig
    from vch.options.run_options import RunOptions

_INITS = ("/sbin/init", "/usr/sbin/init", "/usr/local/sbin/init")
_SYSTEMD = "systemd"
_HALT = "RTMIN+3"  # systemd(1), "Signals"
_MANAGER = "vch"  # systemd knows some names of container managers, and takes any
_UUID_DIGITS = 32
# What systemd itself gives these when it may mount.  Programs may be executed from /run, as on a machine of its own.
_MEMORY = (("/run", "nosuid,nodev,exec,mode=755"), ("/run/lock", "nosuid,nodev,noexec,mode=1777,size=5m"))


class SystemdMode(enum.Enum):
    """Whether the command is treated as an init system."""

    BY_COMMAND = "true"
    ALWAYS = "always"
    NEVER = "false"


def parse_mode(text: str) -> SystemdMode:
    """--systemd.  Raises ValueError."""
    try:
        return SystemdMode(text.lower())
    except ValueError:
        raise ValueError(f"{text!r}: must be true, false or always") from None


def is_init(command: Sequence[str]) -> bool:
    """Whether this command starts an init system, by Podman's rule."""
    return bool(command) and (command[0] in _INITS or posixpath.basename(command[0]) == _SYSTEMD)


def as_init(options: RunOptions, image: RunConfig, command: Sequence[str], id: str) -> RunOptions:
    """The options of a container `id`, with what an init system wants added if `command` is one.  Raises UsageError."""
    if options.systemd is SystemdMode.ALWAYS and options.own_pids is False:
        raise UsageError("conflicting options: --systemd always and --pid host")
    wanted = options.systemd is SystemdMode.ALWAYS or (options.systemd is SystemdMode.BY_COMMAND and is_init(command))
    if not wanted or options.own_pids is False:
        return options
    taken = {mount.path for mount in options.volumes} | {mount.path for mount in options.tmpfs}
    taken |= {mount.path for mount in options.shares} | {path.rstrip("/") for path in image.volumes}
    named = {entry.partition("=")[0] for entry in image.env}
    from uuid import UUID  # late: few images have an init system

    ours = (f"container={_MANAGER}", f"container_uuid={UUID(hex=id[:_UUID_DIGITS])}")
    return options._replace(
        own_pids=True,
        tmpfs=(*options.tmpfs, *(TmpfsMount(path, words) for path, words in _MEMORY if path not in taken)),
        env=(*(entry for entry in ours if entry.partition("=")[0] not in named), *options.env),
        stop_signal=options.stop_signal or (None if image.stop_signal else parse_signal(_HALT)),
    )
