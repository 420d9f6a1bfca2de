"""`vch run`: its options, as a table, and the record that parsing fills."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from tether.link.late_messages import LEVELS
from tether.spec import Limit, Restart
from vch import ports
from vch.errors import UsageError
from vch.options import process_values, values
from vch.options.pflag import Flag, Given, Kind, bad_value, parse, truth
from vch.options.process_values import HealthOptions
from vch.options.systemd_mode import SystemdMode, parse_mode

T = TypeVar("T")

PULL_POLICIES = ("always", "missing", "never")
NETWORKS = ("user", "none")
DEFAULT_STOP_SECONDS = 10  # Docker's
NO_WORD_ON_HEALTH = HealthOptions()

_S, _V, _L = Kind.SWITCH, Kind.VALUE, Kind.LIST
FLAGS = (
    Flag("add-host", "", _L, "NAME:IP", "add a line to /etc/hosts; IP may be host-gateway"),
    Flag("cap-add", "", _L, "CAPABILITY", "give root a capability beyond Docker's usual ones; ALL for all"),
    Flag("cap-drop", "", _L, "CAPABILITY", "take one away; ALL for all"),
    Flag("cold", "", _S, "", "boot the machine instead of cloning one that waits"),
    Flag("cpus", "", _V, "N", "number of processors (1.5 makes 2)"),
    Flag("debug", "D", _S, "", "show what is done, and the console when it fails"),
    Flag("dns", "", _L, "IP", "name server in place of the host's"),
    Flag("dns-opt", "", _L, "OPTION", "as --dns-option"),
    Flag("dns-option", "", _L, "OPTION", "resolver option"),
    Flag("dns-search", "", _L, "DOMAIN", "search domain"),
    Flag("domainname", "", _V, "NAME", "NIS domain name, and the host's in /etc/hosts"),
    Flag("entrypoint", "", _V, "PROGRAM", 'program in place of the image\'s entrypoint; "" for none'),
    Flag("env", "e", _L, "NAME[=VALUE]", "set an environment variable, or pass on the caller's"),
    Flag("env-file", "", _L, "FILE", "read environment variables from a file"),
    Flag("group-add", "", _L, "GROUP", "one more group for the user, by name or number"),
    Flag("health-cmd", "", _V, "COMMAND", "shell command that finds out whether the container works"),
    Flag("health-interval", "", _V, "TIME", "between two checks (default 30s)"),
    Flag("health-retries", "", _V, "N", "failures in a row that mean unhealthy (default 3)"),
    Flag("health-start-interval", "", _V, "TIME", "between two checks while it starts (default 5s)"),
    Flag("health-start-period", "", _V, "TIME", "how long failures do not count (default 0s)"),
    Flag("health-timeout", "", _V, "TIME", "how long a check may take (default 30s)"),
    Flag("hostname", "h", _V, "NAME", "host name (default: the container's ID)"),
    Flag("interactive", "i", _S, "", "connect standard input"),
    Flag("ip", "", _V, "IP", "IPv4 address in the user network (default 10.0.2.15)"),
    Flag("ip6", "", _V, "IP", "IPv6 address in the user network (default: fec0::15, if the host has IPv6)"),
    Flag("log-level", "", _V, "LEVEL", "show the agent's log: debug, info, warning or error"),
    Flag("mac-address", "", _V, "MAC", "MAC address of the network interface"),
    Flag("memory", "m", _V, "SIZE", "memory of the machine: 512m, 2g"),
    Flag("mount", "", _L, "KEY=VALUE,...", "mount a volume, a tmpfs or an NFS export: type=volume|tmpfs,src=,dst=,..."),
    Flag("name", "", _V, "NAME", "a name that no other running container has"),
    Flag("network", "", _V, "user|none", "user: behind the host's address (default); none"),
    Flag("network-alias", "", _L, "NAME", "one more name of the container, in its own /etc/hosts"),
    Flag("no-healthcheck", "", _S, "", "run no check, not even the image's"),
    Flag("oom-score-adj", "", _V, "N", "from -1000 to 1000: the more, the sooner taken when memory runs out"),
    Flag("pid", "", _V, "host|private", "private: the command is PID 1 of a PID namespace"),
    Flag("platform", "", _V, "OS/ARCH", "which of a multi-platform image's variants"),
    Flag("privileged", "", _S, "", "leave root every capability"),
    Flag("profile", "", _S, "", "show a chart of the start: firmware, kernel, agent, first output"),
    Flag("profile-file", "", _V, "FILE.svg", "draw this chart"),
    Flag("publish", "p", _L, "[[IP:]HOST:]PORT[/udp]", "make a port of the container reachable on the host"),
    Flag("pull", "", _V, "WHEN", "always, missing (default) or never"),
    Flag("quiet", "q", _S, "", "no progress while an image is fetched"),
    Flag("read-only", "", _S, "", "the root file system cannot be changed"),
    Flag("restart", "", _V, "POLICY", "no (default), on-failure[:N], always or unless-stopped"),
    Flag("rm", "", _S, "", "accepted: nothing is ever left behind"),
    Flag("security-opt", "", _L, "OPTION", "no-new-privileges: programs give nobody more privileges"),
    Flag("stop-signal", "", _V, "SIGNAL", "what asks the container to end (default: the image's, or TERM)"),
    Flag("stop-timeout", "", _V, "SECONDS", f"how long it then has before KILL (default {DEFAULT_STOP_SECONDS})"),
    Flag("sysctl", "", _L, "KEY=VALUE", "set a kernel parameter"),
    Flag("systemd", "", _V, "true|false|always", "give an init system what it wants (default: if it is the command)"),
    Flag("timing", "", _S, "", "say at the end where the time went"),
    Flag("timing-file", "", _V, "FILE", "write where the time went as JSON"),
    Flag("tmpfs", "", _L, "/PATH[:OPTIONS]", "mount a tmpfs"),
    Flag("tty", "t", _S, "", "give the container a terminal"),
    Flag("ulimit", "", _L, "NAME=SOFT[:HARD]", "a resource limit: nofile=1024:2048, core=-1"),
    Flag("user", "u", _V, "NAME|UID[:GROUP|GID]", "who runs the command"),
    Flag("verity", "", _S, "", "check every block of the image that is read (dm-verity)"),
    Flag("volume", "v", _L, "[NAME:]/PATH[:ro]", "mount a volume; a named one keeps its content"),
    Flag("workdir", "w", _V, "/PATH", "working directory"),
)


class RunOptions(NamedTuple):
    """What the user asked for.  None: not said, so the image's or the settings' value counts."""

    image: str
    command: tuple[str, ...] = ()
    interactive: bool = False
    tty: bool = False
    env: tuple[str, ...] = ()
    workdir: str | None = None
    user: str | None = None
    groups: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    capabilities: tuple[str, ...] | None = None  # None: all
    no_new_privileges: bool = False
    oom_score_adj: int = 0
    own_pids: bool | None = None
    systemd: SystemdMode = SystemdMode.BY_COMMAND
    health: HealthOptions = NO_WORD_ON_HEALTH
    restart: Restart | None = None
    entrypoint: str | None = None
    hostname: str | None = None
    memory: int | None = None  # bytes
    cpus: int | None = None
    read_only: bool = False
    tmpfs: tuple[values.TmpfsMount, ...] = ()
    volumes: tuple[values.VolumeMount, ...] = ()
    shares: tuple[values.ShareMount, ...] = ()
    name: str | None = None
    network: str = "user"
    hosts: tuple[tuple[str, str], ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    domainname: str = ""
    aliases: tuple[str, ...] = ()
    ip: str | None = None
    ip6: str | None = None
    mac: str | None = None
    ports: tuple[ports.Published, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    verity: bool = False
    stop_signal: int | None = None
    stop_seconds: int = DEFAULT_STOP_SECONDS  # negative: for ever
    pull: str = "missing"
    platform: str | None = None
    debug: bool = False
    log_level: str | None = None  # None: no log, or all of it with `debug`
    quiet: bool = False
    timing: bool = False
    timing_file: str | None = None
    profile: bool = False
    profile_file: str | None = None
    cold: bool = False


class _Collected:
    """The options given, by name, with their values converted and errors in pflag's words."""

    def __init__(self, given: Sequence[Given]) -> None:
        self._given = given

    def switch(self, name: str) -> bool:
        last = self._last(name)
        return last is not None and truth(last)

    def value(self, name: str, convert: Callable[[str], T]) -> T | None:
        last = self._last(name)
        return None if last is None else _converted(last, convert)

    def all(self, names: str | tuple[str, ...], convert: Callable[[str], T]) -> tuple[T, ...]:
        wanted = (names,) if isinstance(names, str) else names
        return tuple(_converted(one, convert) for one in self._given if one.flag.name in wanted)

    def given(self, name: str) -> bool:
        return self._last(name) is not None

    def _last(self, name: str) -> Given | None:
        return next((one for one in reversed(self._given) if one.flag.name == name), None)


def _converted(given: Given, convert: Callable[[str], T]) -> T:
    try:
        return convert(given.value)
    except ValueError as error:
        raise bad_value(given.flag, given.value, str(error)) from error


def parse_run(words: Sequence[str], environ: Mapping[str, str], debug: bool = False) -> RunOptions:
    """Parses what follows `vch run`.  Raises UsageError, or pflag.HelpRequested."""
    given, rest = parse(FLAGS, words)
    if not rest:
        raise UsageError("requires at least 1 argument.")
    if not rest[0]:
        raise UsageError("invalid reference format")
    said = _Collected(given)
    published = [port for group in said.all("publish", ports.parse_ports) for port in group]
    network = said.value("network", _one_of(NETWORKS)) or "user"
    if network == "none" and published:
        raise UsageError("conflicting options: port publishing and --network none")
    for name in ("ip", "ip6", "mac-address", "network-alias"):
        if network == "none" and said.given(name):
            raise UsageError(f"conflicting options: --{name} and --network none")
    from_files = [entry for group in said.all("env-file", _env_file(environ)) for entry in group]
    mounts = [
        *said.all("volume", values.parse_volume),
        *said.all("tmpfs", values.parse_tmpfs),
        *said.all("mount", _mount),
    ]
    _refuse_duplicates([mount.path for mount in mounts])
    shares = _of_kind(values.ShareMount, mounts)
    if network == "none" and shares:
        raise UsageError("conflicting options: an NFS volume and --network none")
    seconds = said.value("stop-timeout", values.parse_seconds)
    return RunOptions(
        image=rest[0],
        command=tuple(rest[1:]),
        interactive=said.switch("interactive"),
        tty=said.switch("tty"),
        env=(*from_files, *said.all("env", lambda text: values.parse_env(text, environ))),
        workdir=said.value("workdir", _workdir),
        user=said.value("user", str),
        groups=said.all("group-add", str),
        limits=process_values.merge_limits(said.all("ulimit", process_values.parse_limit)),
        capabilities=process_values.bounding(
            said.all("cap-add", process_values.parse_capability),
            said.all("cap-drop", process_values.parse_capability),
            said.switch("privileged"),
        ),
        no_new_privileges=_last_true(said.all("security-opt", process_values.parse_security)),
        oom_score_adj=said.value("oom-score-adj", process_values.parse_oom_score) or 0,
        own_pids=said.value("pid", process_values.parse_pid_mode),
        systemd=said.value("systemd", parse_mode) or SystemdMode.BY_COMMAND,
        health=_health(said),
        restart=_restart(said),
        entrypoint=said.value("entrypoint", str),
        hostname=said.value("hostname", values.parse_hostname),
        memory=said.value("memory", values.parse_size),
        cpus=said.value("cpus", _processors),
        read_only=said.switch("read-only"),
        tmpfs=_of_kind(values.TmpfsMount, mounts),
        volumes=_of_kind(values.VolumeMount, mounts),
        shares=shares,
        name=said.value("name", values.parse_name),
        network=network,
        hosts=said.all("add-host", values.parse_host),
        dns=said.all("dns", values.parse_address),
        dns_search=said.all("dns-search", str),
        dns_options=said.all(("dns-option", "dns-opt"), str),
        domainname=said.value("domainname", values.parse_hostname) or "",
        aliases=said.all("network-alias", values.parse_hostname),
        ip=said.value("ip", values.parse_user_ipv4),
        ip6=said.value("ip6", values.parse_user_ipv6),
        mac=said.value("mac-address", values.parse_mac),
        ports=tuple(published),
        sysctls=tuple(dict(said.all("sysctl", values.parse_sysctl)).items()),
        verity=said.switch("verity"),
        stop_signal=said.value("stop-signal", values.parse_signal),
        stop_seconds=DEFAULT_STOP_SECONDS if seconds is None else seconds,
        pull=said.value("pull", _one_of(PULL_POLICIES)) or "missing",
        platform=said.value("platform", str),
        debug=debug or said.switch("debug"),
        log_level=said.value("log-level", _one_of(LEVELS)),
        quiet=said.switch("quiet"),
        timing=said.switch("timing"),
        timing_file=said.value("timing-file", str),
        profile=said.switch("profile"),
        profile_file=said.value("profile-file", str),
        cold=said.switch("cold"),
    )


def _health(said: _Collected) -> HealthOptions:
    def duration(name: str) -> int | None:
        return said.value(name, lambda text: process_values.parse_health_time(name, text)) or None

    try:
        return HealthOptions(
            command=said.value("health-cmd", str) or None,
            interval_ns=duration("health-interval"),
            timeout_ns=duration("health-timeout"),
            start_period_ns=duration("health-start-period"),
            start_interval_ns=duration("health-start-interval"),
            retries=said.value("health-retries", process_values.parse_retries) or None,
            disabled=said.switch("no-healthcheck"),
        ).checked()
    except ValueError as error:
        raise UsageError(str(error)) from error


def _restart(said: _Collected) -> Restart | None:
    policy = said.value("restart", process_values.parse_restart)
    if policy is not None and said.switch("rm"):
        raise UsageError("conflicting options: cannot specify both --restart and --rm")
    return policy


def _last_true(said: Sequence[bool | None]) -> bool:
    """The last word on a question that some of the answers say nothing about."""
    return next((word for word in reversed(said) if word is not None), False)


def _mount(text: str) -> values.VolumeMount | values.TmpfsMount | values.ShareMount:
    from vch.options.mount_option import parse_mount

    return parse_mount(text)


def _of_kind(kind: type[T], among: Sequence[object]) -> tuple[T, ...]:
    return tuple(one for one in among if isinstance(one, kind))


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def choose(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return choose


def _env_file(environ: Mapping[str, str]) -> Callable[[str], list[str]]:
    return lambda path: values.parse_env_file(values.read_text_file(path), environ)


def _workdir(text: str) -> str:
    if text and not text.startswith("/"):
        raise ValueError(f"the working directory '{text}' is invalid, it needs to be an absolute path")
    return text


def _processors(text: str) -> int | None:
    """Whole processors: a machine has no half ones.  0 means as many as usual, as with Docker."""
    return math.ceil(values.parse_cpus(text)) or None


def _refuse_duplicates(paths: Sequence[str]) -> None:
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise UsageError(f"Duplicate mount point: {path}")
        seen.add(path)
