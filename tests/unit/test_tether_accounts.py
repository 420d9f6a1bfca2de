"""Docker's USER string against passwd and group files, with the odd lines that real images have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tether.faults import TetherError
from tether.process import user
from tether.process.accounts import Account, resolve

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# a comment
broken line
short:x:7
joe:x:1000:100:Joe:/home/joe:/bin/sh
+::::::
nohome:x:1001:1001:::
odd\xff:x:1002:1002::/o:
joe:x:5:5::/second:
"""
GROUP = b"""root:x:0:
wheel:x:10:root,joe
users:x:100:joe
dup:x:10:joe
staff:x:50:
bad:x:notanumber:joe
"""


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("", Account(uid=0, gid=0, groups=(0, 10), home=b"/root")),
        ("joe", Account(uid=1000, gid=100, groups=(100, 10), home=b"/home/joe")),
        ("1000", Account(uid=1000, gid=100, groups=(100, 10), home=b"/home/joe")),
        ("joe:staff", Account(uid=1000, gid=50, groups=(50,), home=b"/home/joe")),
        ("joe:50", Account(uid=1000, gid=50, groups=(50,), home=b"/home/joe")),
        ("joe:4242", Account(uid=1000, gid=4242, groups=(4242,), home=b"/home/joe")),
        ("7777", Account(uid=7777, gid=0, groups=(0,), home=b"/")),
        ("7777:8888", Account(uid=7777, gid=8888, groups=(8888,), home=b"/")),
        ("nohome", Account(uid=1001, gid=1001, groups=(1001,), home=b"/")),
        ("odd\udcff", Account(uid=1002, gid=1002, groups=(1002,), home=b"/o")),
        (":staff", Account(uid=0, gid=50, groups=(50,), home=b"/root")),
    ],
)
def test_who(asked: str, expected: Account) -> None:
    assert resolve(asked, PASSWD, GROUP) == expected


@pytest.mark.parametrize("asked", ["nobody", "joe:nogroup", "2147483648", "0:2147483648", "-1", "１"])
def test_who_is_nobody(asked: str) -> None:
    with pytest.raises(TetherError):
        resolve(asked, PASSWD, GROUP)


def test_numbers_need_no_files() -> None:
    assert resolve("", b"", b"") == Account()
    assert resolve("5:6", b"", b"").gid == 6


def test_more_groups_by_name_and_number() -> None:
    account = resolve("joe", PASSWD, GROUP, ("staff", "4242", "wheel", "100"))
    assert account.groups == (100, 10, 50, 4242)
    assert resolve("joe:staff", PASSWD, GROUP, ("wheel",)).groups == (50, 10)
    with pytest.raises(TetherError, match="group ghosts"):
        resolve("joe", PASSWD, GROUP, ("ghosts",))


class TestAccountsOfAThread:
    """Read once, and again when anything has changed."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Iterator[int]:
        (tmp_path / "etc").mkdir()
        self.write(tmp_path / "etc/passwd", "app:x:7:8::/home/app:/bin/sh")
        self.write(tmp_path / "etc/group", "app:x:8:")
        handle = os.open(tmp_path, os.O_PATH)
        yield handle
        os.close(handle)

    def write(self, path: Path, text: str) -> None:
        path.write_text(text + "\n")

    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Who was looked up; files count as settled at once, but for the test that says otherwise."""
        seen: list[str] = []
        real = user.account_of

        def noted(root: int, name: str, more: tuple[str, ...] = (), limit: int | None = None) -> Account:
            seen.append(name)
            return real(root, name, more, limit)

        monkeypatch.setattr(user, "account_of", noted)
        monkeypatch.setattr(user, "SETTLED_NS", -(10**18))
        return seen

    def test_the_same_user_is_looked_up_once(self, root: int, reads: list[str]) -> None:
        accounts = user.Accounts(root, 1000)
        assert [accounts.of("app").home for _ in range(3)] == [b"/home/app"] * 3
        assert reads == ["app"]
        assert accounts.of("7:9").groups == (9,)
        assert accounts.of("app").uid == 7
        assert reads == ["app", "7:9", "app"]

    def test_what_has_changed_is_read(self, root: int, reads: list[str], tmp_path: Path) -> None:
        accounts = user.Accounts(root, 1000)
        accounts.of("app")
        self.write(tmp_path / "etc/passwd", "app:x:9:8::/home/app:/bin/sh")  # as long as before
        assert accounts.of("app").uid == 9
        (tmp_path / "etc/passwd").unlink()
        with pytest.raises(TetherError, match="no matching entries"):
            accounts.of("app")
        self.write(tmp_path / "etc/passwd", "app:x:5:8::/home/app:/bin/sh")
        assert accounts.of("app").uid == 5

    def test_what_has_just_changed_is_not_trusted(
        self, root: int, reads: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(user, "SETTLED_NS", 3600 * 10**9)
        accounts = user.Accounts(root, 1000)
        for _ in range(2):
            accounts.of("app")
        assert reads == ["app", "app"]
