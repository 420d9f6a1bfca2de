"""What the network's parts compute: announcements, duplicates, names that change.  The rest is in tests/vm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tether.faults import TetherError
from tether.net import duplicates, names, rename
from tether.net.checksum import checksum
from tether.net.neighbours import frame
from tether.spec import Host, Interface, Network

MAC = bytes.fromhex("0200000000fe")
TABLE = """\
00000000000000000000000000000001 01 80 10 80       lo
fd000000000000000000000000000005 02 40 00 40     eth0
fd000000000000000000000000000006 02 40 00 82     eth0
fd000000000000000000000000000007 02 40 00 48     eth0
fd000000000000000000000000000005 03 40 00 80     eth1
"""


def test_gratuitous_arp() -> None:
    sent = frame(MAC, "10.0.0.5/24")
    assert sent[:6] == b"\xff" * 6
    assert sent[6:14] == MAC + b"\x08\x06"
    assert sent[14:] == bytes.fromhex("0001080006040001") + MAC + bytes((10, 0, 0, 5)) + bytes(6) + bytes((10, 0, 0, 5))


def test_unsolicited_advertisement() -> None:
    sent = frame(MAC, "fd00::5/64")
    assert sent[:14] == bytes.fromhex("333300000001") + MAC + b"\x86\xdd"
    length = sent[18:20]
    assert int.from_bytes(length, "big") == len(sent) - 54 == 32
    assert checksum(sent[22:54] + bytes(2) + length + bytes((0, 0, 0, 58)) + sent[54:]) == 0
    assert sent[54:56] == bytes((136, 0))
    assert sent[58] == 0x20  # override


def test_which_addresses_may_be_used() -> None:
    assert duplicates.check(TABLE, "eth1", ("fd00::5",)) is True
    assert duplicates.check(TABLE, "eth0", ("fd00::6",)) is True
    assert duplicates.check(TABLE, "eth0", ("fd00::6", "fd00::5")) is None
    assert duplicates.check(TABLE, "eth0", ("fd00::9",)) is None
    with pytest.raises(TetherError, match="another machine on this network has it"):
        duplicates.check(TABLE, "eth0", ("fd00::7",))


def test_aliases_are_in_hosts() -> None:
    network = Network(
        hostname="box",
        domainname="x.test",
        aliases=("a", "b"),
        hosts=(Host(address="1.2.3.4", names=("c",)),),
        interfaces=(Interface(mac="", addresses=("10.0.0.5/24", "fd00::5/64")),),
    )
    assert names.hosts_text(network).decode().splitlines()[-3:] == [
        "10.0.0.5\tbox.x.test box a b", "fd00::5\tbox.x.test box a b", "1.2.3.4\tc"]


@pytest.mark.parametrize("content", [b"", b"short\n", b"x" * 50 + b"\n", b"x" * 5000])
def test_a_file_is_rewritten_in_place(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(b"something of twenty\n")
    inode = path.stat().st_ino
    rename.rewrite(str(path), content)
    assert path.read_bytes() == content
    assert path.stat().st_ino == inode


def test_a_file_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "hosts").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        rename.rewrite(str(tmp_path / "hosts"), b"")


def test_lines_that_the_container_added_stay() -> None:
    before, now, after = b"a\nb\n", b"a\nmine\nb\n\n", b"a\nc\n"
    assert rename.merged(now, before, after) == b"a\nc\nmine\n"
    assert rename.merged(b"", before, after) == after
