"""The three files that name things: hosts, hostname and resolv.conf, with the contents that Docker gives them.

They lie on a tmpfs of ours and are mounted over the container's, so that the image stays untouched.
"""

from tether.spec import Network

_FIXED_HOSTS = (
    "127.0.0.1\tlocalhost",
    "::1\tlocalhost ip6-localhost ip6-loopback",
    "fe00::0\tip6-localnet",
    "ff00::0\tip6-mcastprefix",
    "ff02::1\tip6-allnodes",
    "ff02::2\tip6-allrouters",
)


def hosts_text(network: Network) -> bytes:
    """/etc/hosts: what every Linux has, the container's own addresses, then what the spec adds."""
    lines = list(_FIXED_HOSTS)
    own = f"{network.hostname}.{network.domainname} {network.hostname}" if network.domainname else network.hostname
    own = " ".join((own, *network.aliases))
    for interface in network.interfaces:
        lines += [f"{address.partition('/')[0]}\t{own}" for address in interface.addresses]
    lines += [f"{host.address}\t{' '.join(host.names)}" for host in network.hosts]
    return _text(lines)


def resolv_text(network: Network) -> bytes:
    """/etc/resolv.conf (resolv.conf(5))."""
    lines = [f"nameserver {address}" for address in network.nameservers]
    if network.search:
        lines.append("search " + " ".join(network.search))
    if network.resolver_options:
        lines.append("options " + " ".join(network.resolver_options))
    return _text(lines)


def hostname_text(network: Network) -> bytes:
    """/etc/hostname (hostname(5))."""
    return _text([network.hostname])


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
