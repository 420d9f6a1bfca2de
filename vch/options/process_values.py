"""Values of the options about the process itself, as Docker understands them.

Limits: github.com/docker/go-units, ParseUlimit.  Capabilities: moby, daemon/pkg/oci/caps.  Restart policies: moby,
api/types/container.  Durations: Go's time.ParseDuration.  Every function raises ValueError with what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tether.spec import CAPABILITIES, LIMITS, UNLIMITED, Limit, Restart

ALL = "ALL"
# What Docker leaves to root in a container.
DEFAULT_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
)  # fmt: skip
DOCKERS_LIMITS = frozenset(LIMITS) - {"as"}
OOM_SCORES = range(-1000, 1001)
RESTART_POLICIES = ("always", "no", "on-failure", "unless-stopped")
NO_NEW_PRIVILEGES = "no-new-privileges"
# What takes away a confinement that a machine of its own does not have.
_UNCONFINED = frozenset(("seccomp=unconfined", "apparmor=unconfined", "label=disable", "systempaths=unconfined"))
_MICRO = ("us", "µs", "μs")
_UNITS_NS = {"ns": 1, **dict.fromkeys(_MICRO, 10**3), "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_PART = rf"({_NUMBER})({'|'.join(_UNITS_NS)})"
_DURATION = rf"[-+]?(?:{_PART})+"
LEAST_DURATION_NS = 10**6


class HealthOptions(NamedTuple):
    """What was said about the health check.  None: the image's word counts.  Times in nanoseconds."""

    command: str | None = None
    interval_ns: int | None = None
    timeout_ns: int | None = None
    start_period_ns: int | None = None
    start_interval_ns: int | None = None
    retries: int | None = None
    disabled: bool = False

    def checked(self) -> HealthOptions:
        """The same.  Raises ValueError if it contradicts itself."""
        if self.disabled and any(self._replace(disabled=False)):
            raise ValueError("--no-healthcheck conflicts with --health-* options")
        return self


def parse_limit(text: str) -> Limit:
    """--ulimit NAME=SOFT[:HARD]; -1 is no limit."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"invalid ulimit argument: {text}")
    if name not in DOCKERS_LIMITS:
        raise ValueError(f"invalid ulimit type: {name}")
    parts = value.split(":")
    if len(parts) > 2:
        raise ValueError(f"too many limit value arguments - {value}, can only have up to two, `soft[:hard]`")
    hard = parse_integer(parts[-1])
    soft = parse_integer(parts[0])
    if hard != UNLIMITED and soft == UNLIMITED:
        raise ValueError("ulimit soft limit must be less than or equal to hard limit: "
                         f"soft: -1 (unlimited), hard: {hard}")
    if hard != UNLIMITED and soft > hard:
        raise ValueError(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return Limit(name=name, soft=soft, hard=hard)


def merge_limits(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """One limit for each name: the last."""
    return tuple({limit.name: limit for limit in limits}.values())


def parse_integer(text: str) -> int:
    """A whole number."""
    if not re.fullmatch(r"[-+]?[0-9]+", text):
        raise ValueError(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def parse_oom_score(text: str) -> int:
    """--oom-score-adj."""
    score = parse_integer(text)
    if score not in OOM_SCORES:
        raise ValueError(f"Invalid value {score}, range for oom score adj is [-1000, 1000]")
    return score


def parse_capability(text: str) -> str:
    """The name of a capability, with or without "CAP_", or ALL."""
    name = text.upper().removeprefix("CAP_")
    if name not in CAPABILITIES and name != ALL:
        raise ValueError(f'unknown capability: "{text}"')
    return name


def bounding(added: Sequence[str], dropped: Sequence[str], privileged: bool) -> tuple[str, ...] | None:
    """What root has, after --cap-add, --cap-drop and --privileged; None for everything that the kernel knows."""
    if privileged:
        return None
    if ALL in added:
        kept = [name for name in CAPABILITIES if name not in dropped]
        if len(kept) == len(CAPABILITIES):
            return None
    elif ALL in dropped:
        kept = list(added)
    else:
        kept = [name for name in DEFAULT_CAPABILITIES if name not in dropped]
        kept += added
    return tuple(dict.fromkeys(kept))


def parse_security(text: str) -> bool | None:
    """--security-opt: whether no-new-privileges is wanted; None for what says nothing about it."""
    name, separator, value = text.partition("=" if "=" in text else ":")
    if name == NO_NEW_PRIVILEGES:
        if value not in ("", "true", "false"):
            raise ValueError(f'invalid --security-opt: "{text}"')
        return value != "false"
    if not separator:
        raise ValueError(f'Invalid --security-opt: "{text}"')
    if f"{name}={value}" not in _UNCONFINED:
        raise ValueError(f'"{text}" is not supported: the machine is the boundary, and within it there is '
                         "neither seccomp nor a security module")
    return None


def parse_pid_mode(text: str) -> bool | None:
    """--pid: whether the container has PIDs of its own; None for nothing said."""
    if text not in ("", "host", "private"):
        raise ValueError("--pid: invalid PID mode")
    return text == "private" if text else None


def parse_restart(text: str) -> Restart | None:
    """--restart: the policy, None for "no"."""
    name, colon, number = text.partition(":")
    if colon and not name:
        raise ValueError("invalid restart policy format: no policy provided before colon")
    try:
        retries = int(number) if colon else 0
    except ValueError:
        raise ValueError("invalid restart policy format: maximum retry count must be an integer") from None
    if name and name not in RESTART_POLICIES:
        choices = "', '".join(RESTART_POLICIES[:-1])
        raise ValueError(f"invalid restart policy: unknown policy '{name}'; use one of '{choices}', "
                         f"or '{RESTART_POLICIES[-1]}'")
    if retries and name != "on-failure":
        raise ValueError("invalid restart policy: maximum retry count can only be used with 'on-failure'"
                         + (" and cannot be negative" if retries < 0 else ""))
    if retries < 0:
        raise ValueError("invalid restart policy: maximum retry count cannot be negative")
    if name in ("", "no"):
        return None
    return Restart(always=name != "on-failure", retries=retries)


def parse_duration(text: str) -> int:
    """Nanoseconds of "1h30m", "1.5s", "300ms", "0"."""
    if text.lstrip("+-") == "0":
        return 0
    if re.fullmatch(rf"[-+]?{_NUMBER}", text):
        raise ValueError(f'time: missing unit in duration "{text}"')
    if not re.fullmatch(_DURATION, text):
        raise ValueError(f'time: invalid duration "{text}"')
    total = sum(round(float(number) * _UNITS_NS[unit]) for number, unit in re.findall(_PART, text))
    return -total if text.startswith("-") else total


def parse_health_time(name: str, text: str) -> int:
    """A time of the health check, in nanoseconds; 0 for the default."""
    duration = parse_duration(text)
    if duration < 0:
        raise ValueError(f"--{name} cannot be negative")
    if 0 < duration < LEAST_DURATION_NS:
        raise ValueError(f"{name} cannot be less than 1ms")
    return duration


def parse_retries(text: str) -> int:
    """--health-retries."""
    retries = parse_integer(text)
    if retries < 0:
        raise ValueError("--health-retries cannot be negative")
    return retries
