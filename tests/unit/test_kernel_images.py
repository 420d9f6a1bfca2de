"""Reading what kernels come in: Debian packages and bzImages, whole and damaged."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tarfile
import zlib
from pathlib import Path

import pytest
import zstandard

from imagebuild.boot import bzimage
from imagebuild.boot.deb import unpack_deb
from imagebuild.errors import KernelError

FILES = {"./boot/config-6.1": b"CONFIG_PVH=y\n", "./usr/share/doc/readme": b"odd"}


def a_tar(extra: tarfile.TarInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        if extra is not None:
            tar.addfile(extra)
    return buffer.getvalue()


def an_ar(**members: bytes) -> bytes:
    parts = [b"!<arch>\n"]
    for name, data in members.items():
        parts.append(f"{name.replace('__', '.'):<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode())
        parts.append(data + b"\n" * (len(data) % 2))
    return b"".join(parts)


def boot_only(name: str) -> str | None:
    return name.removeprefix("boot/") if name.startswith("boot/") else None


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(("member", "packed"), [
    ("data__tar", a_tar()), ("data__tar__gz", gzip.compress(a_tar())), ("data__tar__xz", lzma.compress(a_tar())),
    ("data__tar__zst", zst(a_tar())),
])
def test_a_package_is_read_whatever_its_compression(tmp_path: Path, member: str, packed: bytes) -> None:
    deb = tmp_path / "x.deb"
    deb.write_bytes(an_ar(**{"debian-binary": b"2.0\n", "control__tar__xz": b"odd", member: packed}))
    assert unpack_deb(deb, tmp_path / "out", boot_only) == ["config-6.1"]
    assert (tmp_path / "out/config-6.1").read_bytes() == FILES["./boot/config-6.1"]


def test_only_regular_files_are_taken(tmp_path: Path) -> None:
    link = tarfile.TarInfo("./boot/evil")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    deb = tmp_path / "x.deb"
    deb.write_bytes(an_ar(data__tar=a_tar(link)))
    unpack_deb(deb, tmp_path / "out", boot_only)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config-6.1"]


@pytest.mark.parametrize("content", [
    pytest.param(b"", id="empty"),
    pytest.param(b"<html>", id="not an archive"),
    pytest.param(an_ar(**{"debian-binary": b"2.0\n"}), id="no data"),
    pytest.param(an_ar(data__tar__xz=lzma.compress(a_tar()))[:-200], id="cut in the data"),
    pytest.param(an_ar(data__tar=a_tar())[:30], id="cut in a header"),
    pytest.param(an_ar(data__tar__zst=b"no zstd"), id="not the compression it says"),
])
def test_a_damaged_package_is_named(tmp_path: Path, content: bytes) -> None:
    deb = tmp_path / "x.deb"
    deb.write_bytes(content)
    with pytest.raises(KernelError, match=r"x\.deb.*delete it and try again"):
        unpack_deb(deb, tmp_path / "out", boot_only)


def a_kernel(owner: bytes = b"Xen\0", kind: int = 18) -> bytes:
    """An ELF file with one program header, a PT_NOTE that has one note."""
    note = struct.pack("<III", len(owner), 4, kind) + owner + struct.pack("<I", 0x1000000)
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(note), len(note), 4) + note + b"kernel text " * 500


def a_bzimage(payload: bytes) -> bytes:
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    setup[0x202:0x208] = b"HdrS" + struct.pack("<H", 0x20F)
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    return bytes(setup) + bytes(16) + payload + b"after"


def lz4_stored(data: bytes) -> bytes:
    """An LZ4 block with literals only."""
    length, more = len(data) - 15, b""
    while length >= 255:
        more, length = more + b"\xff", length - 255
    return b"\xf0" + more + bytes([length]) + data


def lz4_legacy(data: bytes) -> bytes:
    block = lz4_stored(data)
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block


def with_size(packed: bytes, data: bytes) -> bytes:
    return packed + struct.pack("<I", len(data))


@pytest.mark.parametrize("packed", [
    pytest.param(gzip.compress(a_kernel()), id="gzip"),
    pytest.param(with_size(lzma.compress(a_kernel()), a_kernel()), id="xz"),
    pytest.param(with_size(zst(a_kernel()), a_kernel()), id="zstd"),
    pytest.param(with_size(lz4_legacy(a_kernel()), a_kernel()), id="lz4"),
])
def test_the_plain_kernel_comes_out_of_a_bzimage(packed: bytes) -> None:
    assert bzimage.pvh_kernel(a_bzimage(packed), "vmlinuz") == a_kernel()


def test_a_kernel_without_the_entry_or_of_another_compression_is_booted_as_it_is() -> None:
    assert bzimage.pvh_kernel(a_bzimage(gzip.compress(a_kernel(kind=1))), "vmlinuz") is None
    assert bzimage.pvh_kernel(a_bzimage(gzip.compress(a_kernel(owner=b"GNU\0"))), "vmlinuz") is None
    assert bzimage.pvh_kernel(a_bzimage(b"BZh91AY"), "vmlinuz") is None


@pytest.mark.parametrize("image", [
    pytest.param(b"", id="empty"),
    pytest.param(b"MZ" * 400, id="another program"),
    pytest.param(a_bzimage(gzip.compress(a_kernel()))[:-20], id="cut short"),
    pytest.param(a_bzimage(with_size(lz4_legacy(b"x" * 99), b"x")), id="another size than promised"),
    pytest.param(a_bzimage(with_size(b"\xfd7zXZ" + b"x" * 50, b"")), id="damaged xz"),
])
def test_a_damaged_image_is_named(image: bytes) -> None:
    with pytest.raises(KernelError, match="vmlinuz"):
        bzimage.pvh_kernel(image, "vmlinuz")


def test_lz4_matches_far_near_and_overlapping() -> None:
    literals = b"abcdefgh"
    far = bytes([0x80]) + literals + struct.pack("<H", 8)  # 8 literals, then 4 bytes from 8 back
    run = bytes([0x1F]) + b"z" + struct.pack("<H", 1) + bytes([255, 6])  # "z", then 15+255+6+4 times what stands 1 back
    last = bytes([0x20]) + b"!!"
    assert bzimage.lz4_block(far + run + last, 1000) == b"abcdefghabcd" + b"z" * 281 + b"!!"


@pytest.mark.parametrize("block", [
    pytest.param(b"\x10a\x02\x00", id="a match before the block"),
    pytest.param(b"\x10a\x00\x00", id="a match of distance 0"),
    pytest.param(b"\x1fa\x01\x00" + b"\xff" * 40 + b"\x00", id="more than the limit"),
])
def test_lz4_refuses_damage(block: bytes) -> None:
    with pytest.raises(ValueError, match="LZ4"):
        bzimage.lz4_block(block, 1000)


def test_gzip_bombs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bzimage, "MAX_UNPACKED", 1 << 16)
    plain = bzimage.unpack(zlib.compress(bytes(1 << 20), wbits=31), "vmlinuz")
    assert plain is not None
    assert len(plain) == 1 << 16
