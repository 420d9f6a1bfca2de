"""The tar reader: every dialect that Python's `tarfile` and GNU tar write, and what hostile archives try."""

from __future__ import annotations

import io
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuild.errors import LayerError
from imagebuild.layer.bytestream import ByteStream
from imagebuild.layer.entry import Entry, Kind
from imagebuild.layer.limits import Limits
from imagebuild.layer.tarheader import BLOCK, number
from imagebuild.layer.tarstream import TarStream

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def read(archive: bytes, chunk: int = 1 << 20, limits: Limits | None = None) -> list[tuple[Entry, bytes]]:
    """All entries of *archive* with their data, delivered in chunks of *chunk* bytes."""
    chunks = (archive[at : at + chunk] for at in range(0, len(archive), chunk))
    stream = TarStream(ByteStream(chunks), limits or Limits())
    return [(entry, b"".join(stream.data())) for entry in stream]


def write(format: int, *members: tarfile.TarInfo, content: bytes = b"") -> bytes:
    """An archive of *members*; regular files have *content*."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as tar:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, **values: object) -> tarfile.TarInfo:
    """A member with the attributes given."""
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


def header(**fields: bytes) -> bytes:
    """A raw header block with a right checksum; fields as they are to stand there."""
    where = {"name": 0, "mode": 100, "uid": 108, "gid": 116, "size": 124, "mtime": 136, "type": 156, "link": 157,
             "magic": 257, "prefix": 345, "sparse": 386, "extended": 482, "realsize": 483}  # fmt: skip
    block = bytearray(BLOCK)
    block[257:265] = b"ustar\x0000"
    for field, value in fields.items():
        block[where[field] : where[field] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """A PAX header of *records* (``key=value``)."""
    body = b""
    for record in records:
        length = len(record) + 3
        while len(b"%d %s\n" % (length, record)) != length:
            length += 1
        body += b"%d %s\n" % (length, record)
    return header(name=b"pax", size=b"%011o" % len(body), type=kind) + body + bytes(-len(body) % BLOCK)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("chunk", [1, 100, 512, 513, 1 << 20])
def test_reads_what_tarfile_writes(format: int, chunk: int) -> None:
    long = format != tarfile.USTAR_FORMAT
    name = "d/" + "n" * (200 if long else 90)
    archive = write(
        format,
        member("d", type=tarfile.DIRTYPE, mode=0o1777, uid=1, gid=2, mtime=3),
        member(name, mode=0o4755, uid=4_000_000_000 if long else 7, mtime=1_700_000_000),
        member("link", type=tarfile.SYMTYPE, linkname="t" * (300 if long else 100)),
        member("hard", type=tarfile.LNKTYPE, linkname=name),
        member("dev", type=tarfile.CHRTYPE, devmajor=259, devminor=70000),
        member("fifo", type=tarfile.FIFOTYPE),
        content=b"x" * 1000,
    )
    entries = read(archive, chunk)
    assert [entry.kind for entry, _ in entries] == [
        Kind.DIRECTORY, Kind.REGULAR, Kind.SYMLINK, Kind.HARDLINK, Kind.CHAR, Kind.FIFO
    ]  # fmt: skip
    folder, file, link, hard, device, _ = (entry for entry, _ in entries)
    assert (folder.mode, folder.uid, folder.gid, folder.mtime) == (0o1777, 1, 2, 3)
    assert (file.name, file.size, file.mode) == (name.encode(), 1000, 0o4755)
    assert file.uid == (4_000_000_000 if long else 7)
    assert len(link.link) == (300 if long else 100)
    assert hard.link == name.encode()
    assert (device.major, device.minor) == (259, 70000)
    assert entries[1][1] == b"x" * 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.5", (1, 500_000_000)), ("-1.25", (-2, 750_000_000)), ("-0.5", (-1, 500_000_000)), ("-3", (-3, 0)),
     ("99999999999.123456789123", (99999999999, 123456789)), (".5", (0, 500_000_000))],
)  # fmt: skip
def test_times(text: str, expected: tuple[int, int]) -> None:
    [(entry, _)] = read(pax(b"mtime=" + text.encode()) + header(name=b"f", type=b"0"))
    assert (entry.mtime, entry.mtime_ns) == expected


def test_libarchive_attributes_count_where_there_are_no_others() -> None:
    archive = pax(b"LIBARCHIVE.xattr.user.a%20b=AAH/", b"LIBARCHIVE.xattr.user.c=AA", b"SCHILY.xattr.user.c=\0=\n")
    [(entry, _)] = read(archive + header(name=b"f", type=b"0"))
    assert entry.xattrs == {b"user.a b": b"\0\1\xff", b"user.c": b"\0=\n"}


def test_global_headers_last_until_taken_back_and_name_no_files() -> None:
    archive = pax(b"uid=77", b"path=all", b"comment=x", kind=b"g") + header(name=b"a", type=b"0")
    archive += pax(b"uid=", kind=b"g") + header(name=b"b", type=b"0", uid=b"0000005\0")
    assert [(entry.name, entry.uid) for entry, _ in read(archive)] == [(b"a", 77), (b"b", 5)]


def test_base_256_numbers() -> None:
    assert number(b"\x80" + bytes(6) + b"\x05") == 5
    assert number(b"\xff" * 12) == -1
    assert number(b"\xff" * 11 + b"\x00") == -256


def test_names_of_v7_directories_and_of_star() -> None:
    archive = header(name=b"folder/", magic=bytes(8), type=b"\0") + header(name=b"f", prefix=b"p" * 131, type=b"0")
    star = bytearray(header(name=b"f", prefix=b"q", type=b"0"))
    star[345 + 131 : 345 + 143] = b"00000000017 "
    star[508:512] = b"tar\0"
    star[148:156] = b" " * 8
    star[148:156] = b"%06o\0 " % sum(star)
    entries = [entry for entry, _ in read(archive + bytes(star))]
    assert entries[0].kind is Kind.DIRECTORY
    assert [entry.name for entry in entries[1:]] == [b"p" * 131 + b"/f", b"q/f"]


@pytest.mark.parametrize("form", ["gnu", "ustar", "posix", "v7", "oldgnu"])
def test_reads_what_gnu_tar_writes(tmp_path: Path, form: str) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/sub/file").write_bytes(b"content" * 1000)
    (tmp_path / "in/link").symlink_to("sub/file")
    archive = subprocess.run(
        ["tar", "-c", f"--format={form}", "-C", tmp_path / "in", "."], stdout=subprocess.PIPE, check=True
    ).stdout
    found = {entry.name: (entry.kind, data) for entry, data in read(archive, 1000)}
    assert found == {
        b"./": (Kind.DIRECTORY, b""),
        b"./sub/": (Kind.DIRECTORY, b""),
        b"./link": (Kind.SYMLINK, b""),
        b"./sub/file": (Kind.REGULAR, b"content" * 1000),
    }


def test_an_archive_may_end_without_zeros_or_be_empty() -> None:
    assert read(b"") == []
    assert [entry.name for entry, _ in read(header(name=b"a", type=b"0"))] == [b"a"]


BAD = {
    "no tar": b"x" * 1024,
    "bad checksum": header(name=b"a")[:-1] + b"x",
    "cut in a header": header(name=b"a", type=b"0") + b"b" * 100,
    "cut in data": header(name=b"a", type=b"0", size=b"%011o" % 5000) + bytes(512),
    "huge file that is not there": header(name=b"a", type=b"0", size=b"\x80" + b"\x7f" * 11),
    "negative size": header(name=b"a", type=b"0", size=b"\xff" * 12),
    "letters in a number": header(name=b"a", type=b"0", uid=b"0o17   \0"),
    "unknown type": header(name=b"a", type=b"M"),
    "long name of a gigabyte": header(name=b"a", type=b"L", size=b"%011o" % (1 << 30)),
    "pax header of a gigabyte": header(name=b"a", type=b"x", size=b"%011o" % (1 << 30)),
    "pax length lies": header(name=b"a", type=b"x", size=b"%011o" % 10) + b"99 a=b\n".ljust(512, b"\0"),
    "pax length is no number": header(name=b"a", type=b"x", size=b"%011o" % 7) + b"1x a=b\n".ljust(512, b"\0"),
    "pax size is no number": pax(b"size=-5") + header(name=b"a", type=b"0"),
    "pax time is no number": pax(b"mtime=soon") + header(name=b"a", type=b"0"),
    "pax number without end": pax(b"uid=" + b"9" * 5000) + header(name=b"a", type=b"0"),
    "owner beyond 32 bits": pax(b"uid=4294967296") + header(name=b"a", type=b"0"),
    "negative owner": pax(b"uid=-2") + header(name=b"a", type=b"0"),
    "NUL in a name": pax(b"path=a\0b") + header(name=b"a", type=b"0"),
    "endless name": pax(b"path=" + b"a/" * 3000) + header(name=b"a", type=b"0"),
    "link to nothing": header(name=b"a", type=b"2"),
    "xattr in no base 64": pax(b"LIBARCHIVE.xattr.user.x=a") + header(name=b"a", type=b"0"),
    "global records without end": pax(*(b"key%d=x" % at for at in range(200)), kind=b"g"),
    "sparse out of order": pax(b"GNU.sparse.size=100", b"GNU.sparse.map=50,1,10,1")
    + header(name=b"a", type=b"0", size=b"%011o" % 2),
    "sparse beyond the end": pax(b"GNU.sparse.size=10", b"GNU.sparse.map=50,1")
    + header(name=b"a", type=b"0", size=b"%011o" % 1),
    "sparse that does not add up": pax(b"GNU.sparse.size=10", b"GNU.sparse.map=0,5") + header(name=b"a", type=b"0"),
    "sparse with half a pair": pax(b"GNU.sparse.size=10", b"GNU.sparse.map=0,5,7") + header(name=b"a", type=b"0"),
    "sparse of a future version": pax(b"GNU.sparse.major=2", b"GNU.sparse.realsize=1") + header(name=b"a", type=b"0"),
    "sparse map longer than the file": pax(b"GNU.sparse.major=1", b"GNU.sparse.realsize=1")
    + header(name=b"a", type=b"0", size=b"%011o" % 512) + b"999\n".ljust(512, b"1"),
    "sparse map with too many": pax(b"GNU.sparse.major=1", b"GNU.sparse.realsize=1")
    + header(name=b"a", type=b"0", size=b"%011o" % 512) + b"99999999999\n".ljust(512, b"1"),
    "old sparse that never ends": header(name=b"a", type=b"S", extended=b"\1") + (bytes(504) + b"\1" + bytes(7)) * 50,
}  # fmt: skip


@pytest.mark.parametrize("archive", BAD.values(), ids=BAD.keys())
def test_bad_archives_are_refused(archive: bytes) -> None:
    with pytest.raises(LayerError) as caught:
        read(archive)
    assert caught.value.cause
    assert caught.value.remedy


def test_signed_checksums_are_taken() -> None:
    block = bytearray(header(name=b"\xff\xfe", type=b"0"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 * (byte > 127) for byte in block)
    assert [entry.name for entry, _ in read(bytes(block))] == [b"\xff\xfe"]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_ends_in_an_error_or_an_archive(data: st.DataObject) -> None:
    archive = bytearray(
        pax(b"mtime=1.5", b"SCHILY.xattr.user.a=b") + header(name=b"a", type=b"0", size=b"%011o" % 600) + bytes(1024)
        + header(name=b"l", type=b"S", size=b"%011o" % 3, sparse=b"%011o\0%011o\0" % (5, 3), realsize=b"%011o\0" % 9)
        + b"abc".ljust(512, b"\0") + pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=9")
        + header(name=b"s", type=b"0", size=b"%011o" % 515) + b"1\n2\n3\n".ljust(512, b"\0") + b"abc"
    )  # fmt: skip
    for _ in range(data.draw(st.integers(1, 4))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    for at in range(0, len(archive) - 511, 512):  # make checksums right again, so that damage gets past them
        if archive[at + 257 : at + 262] == b"ustar":
            archive[at + 148 : at + 156] = b" " * 8
            archive[at + 148 : at + 156] = b"%06o\0 " % sum(archive[at : at + 512])
    with suppress(LayerError):
        read(bytes(archive))


def test_old_sparse_header() -> None:
    [(entry, data)] = read(
        header(name=b"s", type=b"S", size=b"%011o" % 3, sparse=b"%011o\0%011o\0" % (5, 3), realsize=b"%011o\0" % 9)
        + b"abc".ljust(512, b"\0")
    )
    assert (entry.size, entry.segments, data) == (9, ((5, 3),), b"abc")
