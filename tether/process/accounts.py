"""Who a process runs as: Docker's USER string against the container's own passwd and group files.

The rules are those of runc (libcontainer, user.GetExecUser): a name or a number is looked up; a number
that nobody has is taken as it is, a name that nobody has is an error; groups beyond the primary one come along only
when no group was asked for.  Formats: passwd(5), group(5).
"""

import errno

from tether.faults import TetherError
from tether.link.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ID = 2**31 - 1  # as Docker accepts
PASSWD_FIELDS = 7
GROUP_FIELDS = 4
ROOT_HOME = b"/"  # the home of who has no entry


class Account(Record):
    """What a process is given.  `groups` begins with the primary group, as Docker has it since CVE-2022-36109."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = (0,)
    home: bytes = ROOT_HOME


class Group(Record):
    """A line of the group file."""

    name: bytes
    gid: int
    members: tuple[bytes, ...] = ()


class User(Record):
    """A line of the passwd file."""

    name: bytes
    uid: int
    gid: int
    home: bytes = ROOT_HOME


def parse_passwd(text: bytes, part: bytes = b"") -> "Iterator[User]":
    """The users of a passwd file whose lines have `part` in them; lines that are none are passed over, as every C
    library does."""
    for line in text.splitlines():
        if part in line:
            fields = line.split(b":")
            if len(fields) >= PASSWD_FIELDS and fields[2].isdigit() and fields[3].isdigit():
                yield User(name=fields[0], uid=int(fields[2]), gid=int(fields[3]), home=fields[5] or ROOT_HOME)


def parse_groups(text: bytes, part: bytes = b"") -> "Iterator[Group]":
    """The groups of a group file, in the same way."""
    for line in text.splitlines():
        if part in line:
            fields = line.split(b":")
            if len(fields) >= GROUP_FIELDS and fields[2].isdigit():
                members = tuple(name for name in fields[3].split(b",") if name)
                yield Group(name=fields[0], gid=int(fields[2]), members=members)


def resolve(asked: str, passwd: bytes, group: bytes, more: tuple[str, ...] = ()) -> Account:
    """The account for Docker's USER string, with `more` groups.  Raises TetherError for a name without an entry."""
    user_part, _, group_part = asked.partition(":")
    user = _find_user(user_part, passwd)
    others: list[int] = []
    if group_part:
        gid = _find_group(group_part, group)
    else:
        gid = user.gid
        if user.name:
            others = [entry.gid for entry in parse_groups(group, user.name) if user.name in entry.members]
    others += [_find_group(name, group) for name in more]
    return Account(uid=user.uid, gid=gid, groups=tuple(dict.fromkeys((gid, *others))), home=user.home)


def _find_user(asked: str, passwd: bytes) -> User:
    number = _number("user", asked or "0")
    name = asked.encode("utf-8", "surrogateescape")
    for user in parse_passwd(passwd, name if number is None else b"%d" % number):
        if (asked and user.name == name) or user.uid == number:
            return user
    if number is None:
        raise TetherError(f"user {asked}", "no matching entries in passwd file", errno.EINVAL,
                          "use a user of the image, or a number")
    return User(name=b"", uid=number, gid=0)


def _find_group(asked: str, group: bytes) -> int:
    number = _number("group", asked)
    name = asked.encode("utf-8", "surrogateescape")
    for entry in parse_groups(group, name if number is None else b"%d" % number):
        if entry.name == name or entry.gid == number:
            return entry.gid
    if number is None:
        raise TetherError(f"group {asked}", "no matching entries in group file", errno.EINVAL,
                          "use a group of the image, or a number")
    return number


def _number(kind: str, asked: str) -> int | None:
    """The number that `asked` is, or None for a name."""
    if not (asked.isascii() and asked.isdigit()):
        return None
    if int(asked) > MAX_ID:
        raise TetherError(f"{kind} {asked}", f"numbers go from 0 to {MAX_ID}", errno.EINVAL)
    return int(asked)
