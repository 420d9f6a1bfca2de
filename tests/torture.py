"""Layers made to break unpackers: every case that some known tool gets wrong, as tar archives.

`torture_layers` is an image of three layers, lowest first; all of it is valid by OCI's ``layer.md``.  The archives come
from Python's `tarfile`, so that the reader under test does not read what its own author wrote.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping

#: The latest whole second in POSIX's 33-bit octal field, and beyond: both after 2106.
AFTER_2106 = 5_000_000_000
BEFORE_1970 = -1_000_000_000
LONG_NAME = b"n" * 255
ODD_NAMES = (
    b"new\nline", b"\xff\xfe not utf-8", b"tab\tand  spaces ", b"\xe2\x82\xac", b"-rf", b"!before the dot", b"a\\b"
)  # fmt: skip
#: A file capability as setcap writes it: cap_net_raw+ep, revision 2.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
#: A POSIX ACL as the kernel keeps it: version 2; user::rw-, user:1000:r--, group::r--, mask::r--, other::---.
ACL = bytes.fromhex(
    "02000000" "01000600ffffffff" "02000400e8030000" "04000400ffffffff" "10000400ffffffff" "20000000ffffffff"
)


class Archive:
    """Builds one tar archive in memory, entry by entry, in whatever order it is told."""

    def __init__(self, format: int = tarfile.PAX_FORMAT) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(  # noqa: SIM115 - closed by `bytes`
            fileobj=self._buffer, mode="w", format=format, encoding="utf-8", errors="surrogateescape"
        )

    def add(
        self,
        name: bytes | str,
        content: bytes = b"",
        *,
        type: bytes = tarfile.REGTYPE,
        mode: int = 0o644,
        owner: tuple[int, int] = (0, 0),
        mtime: int | str = 1_700_000_000,
        link: bytes | str = b"",
        device: tuple[int, int] = (0, 0),
        xattrs: Mapping[str, bytes] | None = None,
        pax: Mapping[str, str] | None = None,
    ) -> Archive:
        """Append an entry; *mtime* as text goes into a PAX record as it is."""
        info = tarfile.TarInfo(_text(name))
        info.type, info.mode, (info.uid, info.gid) = type, mode, owner
        info.size = len(content)
        info.linkname = _text(link)
        info.devmajor, info.devminor = device
        records = dict(pax or {})
        if isinstance(mtime, str):
            records["mtime"] = mtime
        else:
            info.mtime = mtime
        for key, value in (xattrs or {}).items():
            records[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
        info.pax_headers = records
        self._tar.addfile(info, io.BytesIO(content))
        return self

    def directory(self, name: bytes | str, *, mode: int = 0o755, **more: object) -> Archive:
        """Append a directory."""
        return self.add(name, type=tarfile.DIRTYPE, mode=mode, **more)  # type: ignore[arg-type]

    def symlink(self, name: bytes | str, target: bytes | str) -> Archive:
        """Append a symbolic link."""
        return self.add(name, type=tarfile.SYMTYPE, link=target, mode=0o777)

    def hardlink(self, name: bytes | str, target: bytes | str) -> Archive:
        """Append another name for *target*."""
        return self.add(name, type=tarfile.LNKTYPE, link=target)

    def whiteout(self, folder: str, name: str = ".wh..opq") -> Archive:
        """Append a whiteout of *name* in *folder*; without a name, of all that is in it."""
        return self.add(f"{folder}/.wh.{name}".lstrip("/"), mode=0)

    def bytes(self) -> bytes:
        """The finished archive."""
        self._tar.close()
        return self._buffer.getvalue()


def _text(name: bytes | str) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")


def pattern(size: int, seed: int = 1) -> bytes:
    """*size* bytes that look random and are always the same."""
    block = bytes((at * at * seed + at * 7 + (at >> 8)) & 0xFF for at in range(min(size, 8191)))
    return (block * (size // max(1, len(block)) + 1))[:size]


def base_layer() -> bytes:
    """All kinds of files, names and attributes."""
    tar = Archive().directory(".", mode=0o755)
    tar.directory("sizes")
    for size in (0, 1, 511, 512, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 100_000):
        tar.add(f"sizes/{size}", pattern(size, size | 1))
    tar.directory("names")
    for name in (*ODD_NAMES, LONG_NAME):
        tar.add(b"names/" + name, name)
    deep = "/".join(["deep"] + [f"{level:02d}" + "d" * 60 for level in range(20)])
    for level in range(1, deep.count("/") + 2):
        tar.directory("/".join(deep.split("/")[:level]))
    tar.add(f"{deep}/bottom", b"far down")
    tar.directory("times")
    tar.add("times/before", mtime=BEFORE_1970).add("times/after", mtime=AFTER_2106)
    tar.add("times/ns", mtime="1600000000.123456789").add("times/negative-ns", mtime="-1.25")
    tar.directory("owners").add("owners/large", b"x", owner=(4_000_000_000, 3_999_999_999))
    tar.add("owners/setuid", b"x", mode=0o6755, owner=(1, 2)).directory("owners/sticky", mode=0o1777)
    tar.directory("links").symlink("links/long", "x/" * 2000).symlink("links/short", "../sizes/1")
    tar.symlink("links/longest", "y" * 4095)
    tar.add("links/one", b"the same file").hardlink("links/two", "links/one").hardlink("links/three", "./links/two")
    tar.hardlink("links/again", "links/short")
    tar.directory("devices")
    tar.add("devices/char", type=tarfile.CHRTYPE, device=(1, 3), mode=0o666)
    tar.add("devices/minor", type=tarfile.CHRTYPE, device=(10, 1000)).add("devices/fifo", type=tarfile.FIFOTYPE)
    tar.add("devices/block", type=tarfile.BLKTYPE, device=(259, 70_000), mode=0o660, owner=(0, 6))
    tar.directory("xattrs", xattrs={"user.of": b"a directory", "trusted.too": b"\x00\x01\xff"})
    tar.add("xattrs/capability", b"#!", mode=0o755, xattrs={"security.capability": CAPABILITY})
    tar.add("xattrs/forty", xattrs={f"user.attribute{at:02d}": pattern(at * 3 + 1, at) for at in range(40)})
    tar.add("xattrs/acl", b"acl", mode=0o640, xattrs={"system.posix_acl_access": ACL})
    tar.add("xattrs/empty", pattern(5000), xattrs={"user.empty": b""})
    tar.directory("many")
    for at in range(3000):
        tar.add(f"many/a file with number {at}", b"%d" % at)
    tar.directory("lower").directory("lower/dir").add("lower/dir/file", b"lower")
    tar.add("lower/file", b"lower file", owner=(7, 8)).add("lower/gone", b"gone").add("lower/linked", b"to be linked")
    tar.directory("lower/opaque").add("lower/opaque/hidden", b"hidden").directory("lower/opaque/sub")
    tar.add("lower/opaque/sub/hidden", b"hidden").directory("lower/both").add("lower/both/old", b"old")
    tar.directory("lower/replaced").add("lower/replaced/inside", b"inside").add("lower/grows", b"a file now")
    tar.directory("lower/implied", mode=0o2750, owner=(33, 34), mtime=1234, xattrs={"user.kept": b"yes"})
    tar.directory("lower/implied/deeper", mode=0o700, owner=(35, 36)).symlink("lower/short", "implied/deeper")
    return tar.bytes()


def change_layer() -> bytes:
    """Duplicates, whiteouts in both orders, kinds that change, parents that are not there."""
    tar = Archive()
    tar.add("twice", b"first", mode=0o600).add("twice", b"second, and last", mode=0o755)
    tar.directory("turns").add("turns/inside", b"1").add("turns", b"a file in place of a directory")
    tar.add("implied/parents/of/file", b"no entry for its parents")
    tar.directory("lower")
    tar.whiteout("lower", "gone").whiteout("lower", "never was")
    tar.whiteout("lower", "file").add("lower/file", b"new, after its whiteout")
    tar.directory("lower/both", mode=0o711).add("lower/both/new", b"new").whiteout("lower", "both")
    tar.directory("lower/opaque").add("lower/opaque/new", b"new").whiteout("lower/opaque")
    tar.add("lower/replaced", b"a file in place of a lower directory")
    tar.directory("lower/grows").add("lower/grows/up", b"a directory in place of a lower file")
    tar.add("lower/implied/deeper/new", b"parents keep what they were below")
    return tar.bytes()


def link_layer() -> bytes:
    """Hard links to files of lower layers, and a file below a lower symbolic link."""
    tar = Archive().directory("lower").hardlink("lower/second name", "lower/linked").hardlink("third name", "twice")
    tar.hardlink("fourth name", "third name")
    return tar.bytes()


def torture_layers() -> list[bytes]:
    """The image: uncompressed layers, lowest first."""
    return [base_layer(), change_layer(), link_layer()]
