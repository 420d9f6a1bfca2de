"""Waiting until IPv6 addresses may be used: the kernel asks first whether another machine has them (RFC 4862, 5.4)."""

from _socket import AF_INET6, inet_ntop

from tether.faults import TetherError
from tether.kernel import files

SECONDS = 10.0  # the kernel asks once and waits for a second, after up to one more at random
_ADDRESSES = "/proc/net/if_inet6"  # address, index, prefix length, scope, flags in hexadecimal digits, name
_TENTATIVE, _FAILED = 0x40, 0x08  # IFA_F_TENTATIVE, IFA_F_DADFAILED of linux/if_addr.h


def usable(name: str, addresses: "tuple[str, ...]") -> bool | None:
    """True if all these (without prefix length) may be used, None if not yet.  Raises TetherError for a duplicate."""
    return check(files.read(_ADDRESSES).decode(), name, addresses)


def check(table: str, name: str, addresses: "tuple[str, ...]") -> bool | None:
    """The same for what /proc/net/if_inet6 says."""
    found = {}
    for line in table.splitlines():
        digits, _, _, _, flags, owner = line.split()
        if owner == name:
            found[inet_ntop(AF_INET6, bytes.fromhex(digits))] = int(flags, 16)
    for address in addresses:
        if found.get(address, 0) & _FAILED:
            raise TetherError(f"address {address} on {name}", "another machine on this network has it",
                              hint="give this container an address that nobody else has")
    return True if all(not found.get(address, _TENTATIVE) & _TENTATIVE for address in addresses) else None


def overdue(name: str, addresses: "tuple[str, ...]") -> TetherError:
    """What to say when the kernel does not come to a result."""
    return TetherError(f"addresses {', '.join(addresses)} on {name}",
                       f"are not usable after {SECONDS:g} s: is the interface's other end connected?")
