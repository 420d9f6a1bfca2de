"""Tar archives out of a tree and into one; the judges are Python's tarfile, GNU tar and bsdtar."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.odd_tree import make_odd_tree
from tether.archive.entry import FILE, FOLDER, HARD_LINK, SYMLINK, ArchiveError, Entry, Segment
from tether.archive.pack import Packer
from tether.archive.tarread import TarReader, parse_records
from tether.archive.tarwrite import END, header_of, pax_record
from tether.archive.unpack import Policy, Unpacker, normal

NS = 10**9
PLAIN = Policy(plain=True)
names = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and name.strip(b"/. "))

IDS = st.integers(0, 2**32 - 1)
entries = st.builds(
    lambda link, **fields: Entry(link=link if fields["kind"] == SYMLINK else b"", **fields),
    link=names,
    name=names.map(lambda name: name.rstrip(b"/")),
    kind=st.sampled_from((FILE, SYMLINK, FOLDER)),
    mode=st.integers(0, 0o7777),
    uid=IDS,
    gid=IDS,
    mtime_ns=st.integers(-(2**62), 2**62),
    xattrs=st.dictionaries(
        st.sampled_from((b"user.a", b"user.b=%c", b"user.\xff")), st.binary(max_size=99)
    ).map(lambda found: tuple(found.items())),
)


def through_pipe(data: bytes) -> int:
    """The read end of a pipe through which `data` comes."""
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb") as pipe:
            try:
                pipe.write(data)
            except BrokenPipeError:
                return  # the reader has seen enough

    threading.Thread(target=write, daemon=True).start()
    return reading


def members(data: bytes) -> list[Entry]:
    """All members of an archive."""
    source = through_pipe(data)
    try:
        reader = TarReader(source)
        return list(iter(reader.next, None))
    finally:
        os.close(source)


def packed(folder: Path, name: bytes = b".") -> bytes:
    """The archive of a folder."""
    reading, writing = os.pipe()
    result = bytearray()

    def read() -> None:
        with open(reading, "rb") as pipe:
            result.extend(pipe.read())

    reader = threading.Thread(target=read)
    reader.start()
    opened = os.open(folder, os.O_RDONLY)
    try:
        packer = Packer(writing)
        packer.add(opened, ".", name)
        packer.finish()
    finally:
        os.close(opened)
        os.close(writing)
        reader.join()
    return bytes(result)


def unpacked(data: bytes, folder: Path, policy: Policy = PLAIN, root: Path | None = None) -> Unpacker:
    """Unpacks into a folder; with `root`, as in a container whose root that is."""
    source, top = through_pipe(data), os.open(folder, os.O_RDONLY)
    outer = -1 if root is None else os.open(root, os.O_RDONLY)
    try:
        inside = b"" if root is None else os.fsencode(folder.relative_to(root))
        unpacker = Unpacker(TarReader(source), top, policy, outer, inside)
        unpacker.run()
        return unpacker
    finally:
        for handle in (source, top, *([outer] if outer >= 0 else [])):
            os.close(handle)


def archive_of(*entries: tuple[Entry, bytes]) -> bytes:
    """An archive of these members and their data."""
    return b"".join(header_of(entry) + data + bytes(-len(data) % 512) for entry, data in entries) + END


def tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """All that an archive keeps of a tree."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (stat.S_IFMT(info.st_mode), info.st_mode & 0o777, info.st_mtime_ns,
                                                content, info.st_nlink if path.is_file() else 0)
    return found


def gnu_tar(*words: str) -> bytes:
    """What GNU tar writes."""
    return subprocess.run(["tar", *words], capture_output=True, check=True).stdout


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A tree with a little of everything."""
    folder = make_odd_tree(tmp_path / "full", big=200_001, hole=3 << 20)
    os.utime(folder / "plain", ns=(5, -2 * NS))  # (libarchive 3.6 adds a fraction instead of subtracting it)
    os.utime(folder / "big", ns=(5, 1 << 60))
    os.utime(folder / "sub", ns=(1, 123456789))
    return folder


class TestWriting:
    def test_tarfile_reads_what_is_written(self, full: Path, tmp_path: Path) -> None:
        with tarfile.open(fileobj=io.BytesIO(packed(full))) as archive:
            archive.extractall(tmp_path / "out")
        expected, found = tree(full), tree(tmp_path / "out")
        assert found.keys() == expected.keys()
        assert {name: one[3] for name, one in found.items()} == {name: one[3] for name, one in expected.items()}

    @pytest.mark.parametrize("program", ["tar", "bsdtar"])
    def test_other_programs_read_what_is_written(self, full: Path, tmp_path: Path, program: str) -> None:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
        (tmp_path / "out").mkdir()
        subprocess.run([program, "-xpf", "-", "-C", tmp_path / "out"], input=packed(full), check=True)
        expected, found = tree(full), tree(tmp_path / "out")
        expected.pop("sub/link"), found.pop("sub/link")  # its time is not restored by all of them
        expected.pop("sub/far"), found.pop("sub/far")
        assert found == expected
        assert (tmp_path / "out/holes").stat().st_blocks < 100

    def test_gnu_tar_finds_no_difference(self, full: Path) -> None:
        done = subprocess.run(["tar", "--compare", "-f", "-", "-C", full], input=packed(full), capture_output=True,
                              check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    def test_two_archives_of_one_tree_are_the_same(self, full: Path) -> None:
        assert packed(full) == packed(full)

    @given(key=st.binary(min_size=1, max_size=20), value=st.binary(max_size=1100))
    def test_records_count_themselves(self, key: bytes, value: bytes) -> None:
        record = pax_record(key.replace(b"=", b"-"), value)
        assert int(record.partition(b" ")[0]) == len(record)
        assert parse_records(record * 2) == [(key.replace(b"=", b"-"), value)] * 2

    @given(entries)
    def test_what_is_written_is_read(self, entry: Entry) -> None:
        read = members(archive_of((entry, b"")))
        assert [one.but(name=one.name.rstrip(b"/")) for one in read] == [entry]


class TestReading:
    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_what_tarfile_writes(self, form: int) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
            for name in ("short", "d" * 90 + "/" + "n" * 80):
                info = tarfile.TarInfo(name)
                info.size, info.mtime, info.uid = 3, 1234567, 1000
                archive.addfile(info, io.BytesIO(b"abc"))
        read = members(buffer.getvalue())
        assert [(one.name, one.size, one.mtime_ns, one.uid) for one in read] == [
            (b"short", 3, 1234567 * NS, 1000), (b"d" * 90 + b"/" + b"n" * 80, 3, 1234567 * NS, 1000)]

    @pytest.mark.parametrize("version", ["old", "0.0", "0.1", "1.0"])
    def test_gnu_tars_sparse_files(self, tmp_path: Path, version: str) -> None:
        with open(tmp_path / "holes", "wb") as file:
            for index in range(40):  # more than the header and one block of the old format hold
                file.seek(index << 16)
                file.write(b"%04d" % index * 1024)
            file.truncate(4 << 20)
        how = ["--format=gnu"] if version == "old" else ["--format=pax", f"--sparse-version={version}"]
        data = gnu_tar("-cSf", "-", *how, "-C", str(tmp_path), "holes")
        assert len(data) < 300_000
        (tmp_path / "out").mkdir()
        unpacked(data, tmp_path / "out")
        assert (tmp_path / "out/holes").read_bytes() == (tmp_path / "holes").read_bytes()
        assert (tmp_path / "out/holes").stat().st_blocks == (tmp_path / "holes").stat().st_blocks

    @pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "pax"])
    def test_gnu_tars_formats(self, tmp_path: Path, form: str) -> None:
        (tmp_path / "in/sub").mkdir(parents=True)
        (tmp_path / "in/sub/file").write_text("content")
        os.link(tmp_path / "in/sub/file", tmp_path / "in/again")
        os.symlink("sub/file", tmp_path / "in/link")
        data = gnu_tar("-cf", "-", f"--format={form}", "-C", str(tmp_path / "in"), ".")
        (tmp_path / "out").mkdir()
        unpacked(data, tmp_path / "out")
        assert {name: one[3:] for name, one in tree(tmp_path / "out").items()} == {
            name: one[3:] for name, one in tree(tmp_path / "in").items()}

    @given(st.binary(max_size=2000))
    def test_noise_is_refused_or_empty(self, data: bytes) -> None:
        try:
            members(data)
        except ArchiveError:
            return
        assert not data[:512].strip(b"\0")

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
    @given(at=st.integers(0, 3071), bit=st.integers(0, 7), cut=st.integers(0, 4000))
    def test_damage_is_an_archive_error(self, at: int, bit: int, cut: int) -> None:
        sparse = Entry(name=b"s" * 150, size=9000, segments=(Segment(offset=4096, length=100),))
        data = bytearray(archive_of((sparse, b"x" * 100), (Entry(name=b"b", size=5), b"12345")))
        data[at] ^= 1 << bit
        try:
            members(bytes(data[:cut]))
        except ArchiveError:
            return

    def test_extensions_are_bounded(self) -> None:
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, 1 << 30
        with pytest.raises(ArchiveError, match="extension header"):
            members(info.tobuf(tarfile.USTAR_FORMAT))

    def test_something_compressed_is_named(self) -> None:
        with pytest.raises(ArchiveError, match="compressed"):
            members(b"\x1f\x8b\x08" + os.urandom(600))


class TestUnpacking:
    def test_what_was_packed(self, full: Path, tmp_path: Path) -> None:
        (full / "pipe").unlink()  # `plain` leaves it out
        (tmp_path / "out").mkdir()
        unpacked(packed(full), tmp_path / "out")
        assert tree(tmp_path / "out") == tree(full)
        assert (tmp_path / "out/holes").stat().st_blocks == (full / "holes").stat().st_blocks

    @pytest.mark.parametrize("name", [b"../out", b"a/../../out", b"..", b"/../out"])
    def test_names_that_lead_out(self, tmp_path: Path, name: bytes) -> None:
        (tmp_path / "top").mkdir()
        with pytest.raises(ArchiveError, match="leads out"):
            unpacked(archive_of((Entry(name=name, size=1), b"x")), tmp_path / "top")
        assert os.listdir(tmp_path) == ["top"]

    def test_absolute_names_are_below_the_folder(self, tmp_path: Path) -> None:
        unpacked(archive_of((Entry(name=b"/etc//./name", size=1), b"x")), tmp_path)
        assert (tmp_path / "etc/name").read_text() == "x"

    @pytest.mark.parametrize("target", [b"/", b"..", b"../victim", b"sub/../..", b"/tmp"])
    def test_links_of_the_archive_do_not_lead_out(self, tmp_path: Path, target: bytes) -> None:
        top = tmp_path / "top"
        top.mkdir()
        (tmp_path / "victim").mkdir()
        link = Entry(name=b"l", kind=SYMLINK, link=target)
        data = archive_of((link, b""), (Entry(name=b"l/x", size=1), b"x"))
        for root in (None, tmp_path):  # in a container, too, which could be led only to places of its own
            with pytest.raises(OSError, match="l/x"):
                unpacked(data, top, root=root)
        assert not os.listdir(tmp_path / "victim")
        assert sorted(os.listdir(tmp_path)) == ["top", "victim"]

    def test_links_that_were_there_lead_inside_the_root(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        (root / "work").mkdir(parents=True)
        (root / "run").mkdir()
        os.symlink("/run", root / "work/abs")
        os.symlink("../../../../../run", root / "work/up")
        data = archive_of((Entry(name=b"abs/a", size=1), b"a"), (Entry(name=b"up/b", size=1), b"b"))
        unpacked(data, root / "work", root=root)
        assert sorted(os.listdir(root / "run")) == ["a", "b"]
        assert os.listdir(tmp_path) == ["root"]

    def test_links_below_the_folder_are_followed(self, tmp_path: Path) -> None:
        data = archive_of((Entry(name=b"usr/lib", kind=FOLDER, mode=0o755), b""),
                          (Entry(name=b"lib", kind=SYMLINK, link=b"usr/lib"), b""),
                          (Entry(name=b"lib/x", size=1), b"x"))
        unpacked(data, tmp_path)
        assert (tmp_path / "usr/lib/x").read_text() == "x"

    @pytest.mark.parametrize("target", [b"../secret", b"/etc/passwd", b"l/secret"])
    def test_hard_links_do_not_lead_out(self, tmp_path: Path, target: bytes) -> None:
        (tmp_path / "secret").write_text("s")
        (tmp_path / "top").mkdir()
        os.symlink("..", tmp_path / "top/l")
        with pytest.raises(ArchiveError):
            unpacked(archive_of((Entry(name=b"h", kind=HARD_LINK, link=target), b"")), tmp_path / "top")
        assert (tmp_path / "secret").stat().st_nlink == 1

    def test_what_is_in_the_way_is_replaced_and_folders_are_merged(self, tmp_path: Path) -> None:
        (tmp_path / "folder/kept").mkdir(parents=True)
        (tmp_path / "full/of/things").mkdir(parents=True)
        (tmp_path / "victim").write_text("v")
        os.symlink("victim", tmp_path / "link")
        os.symlink("victim", tmp_path / "to_folder")
        data = archive_of(
            (Entry(name=b"folder", kind=FOLDER, mode=0o700), b""), (Entry(name=b"full", size=1), b"f"),
            (Entry(name=b"link", size=1), b"l"), (Entry(name=b"to_folder/", kind=FOLDER), b""),
        )
        unpacked(data, tmp_path)
        assert (tmp_path / "folder/kept").is_dir()
        assert (tmp_path / "full").read_text() == "f"
        assert (tmp_path / "link").read_text() == "l"
        assert (tmp_path / "victim").read_text() == "v"
        assert not (tmp_path / "to_folder").is_symlink()

    @pytest.mark.parametrize(("name", "kind", "cause"), [(b"folder", FILE, "overwrite directory with non-directory"),
                                                         (b"file", FOLDER, "overwrite non-directory with directory")])
    def test_kinds_are_kept_if_asked(self, tmp_path: Path, name: bytes, kind: bytes, cause: str) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
        with pytest.raises(ArchiveError, match=cause):
            unpacked(archive_of((Entry(name=name, kind=kind), b"")), tmp_path, Policy(plain=True, keep_kinds=True))

    def test_an_archive_that_ends_in_a_file(self, tmp_path: Path) -> None:
        data = archive_of((Entry(name=b"whole", size=5), b"12345"), (Entry(name=b"half", size=5000), b"x" * 5000))
        with pytest.raises(ArchiveError, match="half: the archive ends in the middle of it"):
            unpacked(data[:2000], tmp_path)
        assert (tmp_path / "whole").read_text() == "12345"

    @given(names)
    def test_normal_names_have_no_tricks_left(self, name: bytes) -> None:
        try:
            parts = normal(name).split(b"/")
        except ArchiveError:
            return
        assert parts == [b""] or not {b"", b".", b".."} & set(parts)


@pytest.fixture(autouse=True)
def _no_descriptors_leak() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(5)
    deadline = time.monotonic() + 60
    while len(os.listdir("/proc/self/fd")) > len(before):  # a server of other tests may just be closing some
        assert time.monotonic() < deadline
        time.sleep(0.01)
