"""From options and image config to the spec of one container VM, as Docker merges them.  Pure.

Docker's rules (moby, daemon/create.go and runconfig): --entrypoint replaces the image's entrypoint and drops its Cmd;
a command given replaces Cmd; environment variables replace the image's by name and keep their place; the image's
volumes exist unless the user mounted something there; the rest is the user's word where there is one.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from imagebuild.oci.imageconfig import Healthcheck
from tether.spec import (
    Disk,
    HealthCheck,
    Host,
    Identity,
    Interface,
    Layer,
    Network,
    Process,
    Root,
    Share,
    Spec,
    Sysctl,
    Terminal,
    Tmpfs,
    Verity,
    Volume,
)
from vch.errors import UsageError
from vch.options import values
from vch.options.process_values import HealthOptions
from vch.options.run_options import RunOptions
from vch.options.systemd_mode import as_init
from vch.options.values import VolumeMount
from vch.qemu.user_network import Addresses, Family, addresses

if TYPE_CHECKING:
    from imagebuild.oci.imageconfig import RunConfig

IMAGE_SERIAL = "image"  # the disk of all layers, one GPT partition each
TOP_SERIAL = "top"  # the disk of what the container writes
VOLUME_SERIAL = "volume{}"  # + number, in the order of `volume_mounts`
SHORT_ID = 12  # digits of the ID that make the default host name, as with Docker
DEFAULT_STOP_SIGNAL = 15  # SIGTERM
DEFAULT_SHELL = ("/bin/sh", "-c")  # of a health check's shell form, unless the image has a SHELL
NS_PER_MS = 1_000_000


class Resolver(NamedTuple):
    """What the host's resolver knows that is not an address: slirp answers the queries."""

    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Placement(NamedTuple):
    """What the machine brings: its identity, NIC, how many layers its image disk has, the user's terminal.

    `verity`: for each of the layers what it must be, or nothing at all.  `servers`: addresses of NFS servers by name.
    """

    id: str
    mac: str
    layers: int
    resolver: Resolver = Resolver()
    terminal: Terminal | None = None
    verity: tuple[Verity, ...] = ()
    host_has_ipv6: bool = False
    servers: Mapping[str, str] | None = None


def user_addresses(options: RunOptions, host_has_ipv6: bool) -> Addresses:
    """The addresses in the user network."""
    return addresses(options.ip, options.ip6, host_has_ipv6)


def build_spec(options: RunOptions, image: RunConfig, placement: Placement, identity: Identity) -> Spec:
    """The spec.  Raises UsageError for what makes no sense together."""
    options = as_init(options, image, arguments(options, image), placement.id)
    return Spec(
        id=placement.id,
        identity=identity,
        root=root_of(placement.layers, placement.verity, options.read_only),
        network=_network(options, placement),
        process=_process(options, image, placement.terminal),
        volumes=tuple(
            Volume(
                disk=Disk(serial=VOLUME_SERIAL.format(index)),
                path=_bytes(mount.path),
                read_only=mount.read_only,
                no_copy=mount.no_copy,
            )
            for index, mount in enumerate(volume_mounts(options, image))
        ),
        tmpfs=tuple(Tmpfs(path=_bytes(mount.path), options=mount.options) for mount in options.tmpfs),
        stop_signal=stop_signal(options, image),
        sysctls=tuple(Sysctl(key=key, value=value) for key, value in options.sysctls),
        own_pids=bool(options.own_pids),
        health=health_check(options.health, image),
        restart=options.restart,
        shares=_shares(options, placement.servers or {}),
    )


def _shares(options: RunOptions, servers: Mapping[str, str]) -> tuple[Share, ...]:
    if not options.shares:
        return ()
    from vch.options.share_plan import share_of

    return tuple(share_of(mount, servers) for mount in options.shares)


def volume_mounts(options: RunOptions, image: RunConfig) -> tuple[VolumeMount, ...]:
    """All volumes, those of the image included, parents before children."""
    taken = {mount.path for mount in options.volumes} | {mount.path for mount in options.tmpfs}
    remote = tuple(f"{mount.path}/" for mount in options.shares)  # what is declared below one is on the server, too
    try:
        wanted = [values.mount_point(path) for path in image.volumes]
    except ValueError as error:
        raise UsageError(f"the image declares a volume that cannot be: {error}") from error
    missing = [path for path in wanted if path not in taken and not f"{path}/".startswith(remote)]
    own = [VolumeMount("", path) for path in dict.fromkeys(missing)]
    return tuple(sorted((*options.volumes, *own), key=lambda mount: mount.path.split("/")))


def stop_signal(options: RunOptions, image: RunConfig) -> int:
    """The signal that asks the container to end."""
    if options.stop_signal is not None:
        return options.stop_signal
    if not image.stop_signal:
        return DEFAULT_STOP_SIGNAL
    try:
        return values.parse_signal(image.stop_signal)
    except ValueError as error:
        raise UsageError(f"the image's stop signal: {error}") from error


def health_check(said: HealthOptions, image: RunConfig) -> HealthCheck | None:
    """The check, if there is one: the image's, with what the user said in its place (moby, daemon/commit.go)."""
    own = image.healthcheck or Healthcheck((), 0, 0, 0, 0)
    kind, *words = ("CMD-SHELL", said.command) if said.command else own.test or ("NONE",)
    if said.disabled or not words or kind not in ("CMD", "CMD-SHELL"):
        return None
    if kind == "CMD-SHELL":
        words = [*(image.shell or DEFAULT_SHELL), words[0]]

    def milliseconds(given: int | None, image_ns: int, default: int) -> int:
        return (given or image_ns) // NS_PER_MS or default

    return HealthCheck(
        args=_all_bytes(words),
        interval_ms=milliseconds(said.interval_ns, own.interval_ns, HealthCheck.interval_ms),
        timeout_ms=milliseconds(said.timeout_ns, own.timeout_ns, HealthCheck.timeout_ms),
        start_period_ms=milliseconds(said.start_period_ns, own.start_period_ns, HealthCheck.start_period_ms),
        start_interval_ms=milliseconds(said.start_interval_ns, own.start_interval_ns, HealthCheck.start_interval_ms),
        retries=said.retries or own.retries or HealthCheck.retries,
    )


def arguments(options: RunOptions, image: RunConfig) -> tuple[str, ...]:
    """Entrypoint and command."""
    if options.entrypoint is not None:
        words = ((options.entrypoint,) if options.entrypoint else ()) + options.command
    else:
        words = (image.entrypoint or ()) + (options.command or image.cmd or ())
    if not words or not words[0]:
        raise UsageError("no command specified")
    return words


def merge_env(image: Iterable[str], given: Iterable[str]) -> list[str]:
    """The image's variables with those given in place of theirs; a bare NAME removes one."""
    merged: dict[str, str] = {}
    for entry in image:
        merged[entry.partition("=")[0]] = entry
    for entry in given:
        name, equals, _ = entry.partition("=")
        if equals:
            merged[name] = entry
        else:
            merged.pop(name, None)
    return list(merged.values())


def parse_resolver(text: str) -> Resolver:
    """Search domains and options of a resolv.conf(5); the last line of each kind counts."""
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        words = line.split()
        if words and words[0] in ("search", "domain", "options"):
            found["search" if words[0] == "domain" else words[0]] = tuple(words[1:])
    search = tuple(word for word in found.get("search", ()) if word != ".")
    return Resolver(search, found.get("options", ()))


def root_of(layers: int, verity: tuple[Verity, ...], read_only: bool = False) -> Root:
    """The root filesystem: so many layers of the image's disk, checked or not, under a disk of the container's own."""
    checked: tuple[Verity | None, ...] = verity or (None,) * layers
    return Root(
        layers=tuple(
            Layer(disk=Disk(serial=IMAGE_SERIAL, partition=number), verity=verity)
            for number, verity in enumerate(checked, 1)
        ),
        writable=Disk(serial=TOP_SERIAL),
        read_only=read_only,
    )


def interfaces_of(options: RunOptions, mac: str, host_has_ipv6: bool) -> tuple[Interface, ...]:
    """The machine's NIC, if it has one."""
    if options.network == "none":
        return ()
    user = user_addresses(options, host_has_ipv6)
    nic = Interface(
        mac=mac,
        addresses=tuple(family.cidr for family in _families(user)),
        gateway4=user.v4.gateway,
        gateway6=user.v6.gateway if user.v6 else "",
        announce=False,  # slirp asks when it wants to know, and there is nobody else
    )
    return (nic,)


def _families(user: Addresses) -> list[Family]:
    return [user.v4] + ([user.v6] if user.v6 else [])


def _network(options: RunOptions, placement: Placement) -> Network:
    hostname = options.hostname or placement.id[:SHORT_ID]
    user = user_addresses(options, placement.host_has_ipv6)
    hosts = tuple(
        Host(address=user.v4.gateway if address == values.HOST_GATEWAY else address, names=(name,))
        for name, address in options.hosts
    )
    if options.network == "none":
        return Network(hostname=hostname, domainname=options.domainname, hosts=hosts)
    families = _families(user)
    return Network(
        hostname=hostname,
        domainname=options.domainname,
        aliases=options.aliases,
        interfaces=interfaces_of(options, placement.mac, placement.host_has_ipv6),
        nameservers=options.dns or tuple(family.resolver for family in families),
        search=options.dns_search or placement.resolver.search,
        resolver_options=options.dns_options or placement.resolver.options,
        hosts=hosts,
    )


def _process(options: RunOptions, image: RunConfig, terminal: Terminal | None) -> Process:
    cwd = options.workdir or image.working_dir or "/"
    return Process(
        args=_all_bytes(arguments(options, image)),
        env=_all_bytes(merge_env(image.env, options.env)),
        cwd=_bytes(posixpath.normpath(posixpath.join("/", cwd))),
        user=image.user if options.user is None else options.user,
        terminal=(terminal or Terminal()) if options.tty else None,
        stdin=options.interactive,
        groups=options.groups,
        limits=options.limits,
        capabilities=options.capabilities,
        no_new_privileges=options.no_new_privileges,
        oom_score_adj=options.oom_score_adj,
    )


def _all_bytes(words: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(_bytes(word) for word in words)


def _bytes(text: str) -> bytes:
    """What the kernel gets: the caller's own bytes back (PEP 383), everything else as UTF-8."""
    return os.fsencode(text)
