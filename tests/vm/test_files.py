"""Files of a running container, seen from outside: what there is, what comes out, what goes in, what has changed."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.odd_tree import make_odd_tree
from tests.vm.harness import Container, container
from tether.link.late_messages import FileStat
from vch.errors import GuestError, HostError
from vch.machine import files

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def box(home: Path, demo_layout: Path) -> Iterator[Container]:
    """A container that only waits."""
    with container("--network", "none", "--tmpfs", "/scratch:size=1m", "-v", "/data/deep", f"oci:{demo_layout}:demo",
                   "sleep", "100000") as made:
        yield made


def put_tar(box: Container, data: bytes, path: str, **options: bool | str) -> None:
    """Puts an archive that somebody else has made."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        files.put_archive(box.machine, file.fileno(), path, **options)


def get_tar(box: Container, path: str) -> bytes:
    """The archive of something in the container."""
    with tempfile.TemporaryFile() as file:
        files.get_archive(box.machine, path, file.fileno())
        file.seek(0)
        return file.read()


def gnu_tar(*words: str | Path, data: bytes = b"") -> bytes:
    """Runs GNU tar; it must have nothing to complain of."""
    done = subprocess.run(["tar", *words], input=data, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b""), done.stdout + done.stderr
    return done.stdout


def member(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", link: str = "") -> bytes:
    """An archive of one member, by Python's tarfile."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname, info.uid, info.gid = kind, len(content), link, 7, 8
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def rich(tmp_path: Path) -> Path:
    """A tree with everything that Linux keeps about a file."""
    folder = make_odd_tree(tmp_path / "rich", big=3_000_001, hole=50 << 20)
    (folder / ("n" * 255)).write_text("longest")
    os.setxattr(folder / "plain", "user.note", b"\0binary\n=\xff")
    os.chmod(folder / "sub", 0o1777)
    os.chmod(folder / "big", 0o4711)
    if os.geteuid() == 0:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(folder / "empty", 4_000_000_000, 12)
        os.setxattr(folder / "sub", "trusted.mark", b"1")
    os.utime(folder / "plain", ns=(5, 1_234_567_890_123_456_789))
    os.utime(folder / "empty", ns=(5, -1_500_000_000))
    os.utime(folder / "sub", ns=(1, 123456789))
    return folder


class TestGetAndPut:
    def test_a_tree_comes_back_as_it_went_in(self, box: Container, rich: Path) -> None:
        """GNU tar makes the archive and compares what comes back."""
        box.sh("mkdir /put")
        put_tar(box, gnu_tar("-cSf", "-", "--format=pax", "--xattrs", "--xattrs-include=*", "-C", rich.parent, "rich"),
                "/put")
        assert box.sh("stat -c '%u %a %h' /put/rich/empty /put/rich/big /put/rich/plain").out.splitlines() == [
            f"{os.stat(rich / 'empty').st_uid} 644 1", f"{os.stat(rich / 'big').st_uid} 4711 1",
            f"{os.stat(rich / 'plain').st_uid} 644 2"]
        assert int(box.sh("du -k /put/rich/holes").out.split()[0]) < 100
        back = get_tar(box, "/put/rich")
        assert len(back) < 4_000_000
        gnu_tar("--compare", "--xattrs", "--xattrs-include=*", "-f", "-", "-C", rich.parent, data=back)

    def test_local_files_and_folders(self, box: Container, rich: Path, tmp_path: Path) -> None:
        box.sh("mkdir /work")
        files.put(box.machine, rich, "/work")
        files.put(box.machine, rich / "plain", "/work")
        files.put(box.machine, f"{rich / 'sub'}/.", "/work")
        assert sorted(box.sh("cd /work; ls").out.split()) == ["deep", "far", "link", "other", "plain", "rich"]
        assert box.sh("cd /work; cat plain; stat -c %u:%g rich/empty").out.split() == [*["text"] * 3, "0:0"]
        files.get(box.machine, "/work/rich", tmp_path / "out")
        assert (tmp_path / "out/rich/big").read_bytes() == (rich / "big").read_bytes()
        assert os.stat(tmp_path / "out/rich/holes").st_blocks < 100
        assert os.stat(tmp_path / "out/rich/big").st_mode & 0o7777 == 0o711  # no set-id bits from a guest
        files.get(box.machine, "/etc/hostname", tmp_path / "one")
        assert (tmp_path / "one/hostname").read_text() == box.sh("cat /etc/hostname").out

    def test_the_whole_root_without_what_the_kernel_makes_up(self, box: Container) -> None:
        with tarfile.open(fileobj=io.BytesIO(get_tar(box, "/"))) as archive:
            names = archive.getnames()
        assert {"./bin/busybox", "./proc", "./dev", "./data/deep"} <= set(names)
        assert not [name for name in names if name.startswith(("./proc/", "./dev/", "./sys/"))]
        with tarfile.open(fileobj=io.BytesIO(get_tar(box, "/proc/1/comm"))) as archive:
            assert archive.getnames() == ["comm"]

    @pytest.mark.parametrize("path", ["/no/such", "/etc/passwd/x"])
    def test_what_cannot_be_got(self, box: Container, path: str, tmp_path: Path) -> None:
        with pytest.raises(GuestError) as raised:
            files.get(box.machine, path, tmp_path)
        assert raised.value.fault.step == "get"
        assert raised.value.fault.errno in {"ENOENT", "ENOTDIR"}
        assert path in str(raised.value)

    def test_a_folder_that_is_not_there_takes_nothing(self, box: Container, rich: Path) -> None:
        for path, number in (("/no/such", "ENOENT"), ("/etc/passwd", "ENOTDIR")):
            with pytest.raises(GuestError) as raised:
                files.put(box.machine, rich, path)
            assert raised.value.fault.errno == number
            assert path in str(raised.value)

    def test_links_in_the_container_do_not_lead_out_of_it(self, box: Container, tmp_path: Path) -> None:
        box.sh("mkdir -p /trap; ln -s / /trap/root; ln -s ../../../../../.. /trap/up; ln -s /proc/1/root /trap/magic")
        put_tar(box, member("root/from-root", content=b"1"), "/trap")
        put_tar(box, member("up/from-up", content=b"1"), "/trap")
        assert box.sh("ls /from-root /from-up").code == 0
        with pytest.raises(GuestError):
            put_tar(box, member("magic/from-magic", content=b"1"), "/trap")
        with pytest.raises(GuestError) as raised:
            put_tar(box, member("../out", content=b"1"), "/trap")
        assert raised.value.fault.errno == "EXDEV"
        with pytest.raises(GuestError):
            files.get(box.machine, "/trap/magic/init", tmp_path)

    def test_dockers_rules_for_what_is_in_the_way(self, box: Container) -> None:
        box.sh("mkdir -p /rules/folder/full; echo old > /rules/file")
        for name, kind, cause in (("folder", tarfile.REGTYPE, "cannot overwrite directory with non-directory"),
                                  ("file", tarfile.DIRTYPE, "cannot overwrite non-directory with directory")):
            with pytest.raises(GuestError, match=cause):
                put_tar(box, member(name, kind), "/rules", keep_kinds=True)
            put_tar(box, member(name, kind), "/rules")
        assert box.sh("test -f /rules/folder && test -d /rules/file").code == 0

    def test_owners(self, box: Container) -> None:
        for owner, expected in (("", "7:8"), ("nobody", "65534:65534"), ("5:6", "5:6")):
            put_tar(box, member("owned", content=b"x"), "/tmp", owner=owner)
            assert box.sh("stat -c %u:%g /tmp/owned").out.strip() == expected
        with pytest.raises(GuestError, match="ghost"):
            put_tar(box, member("owned"), "/tmp", owner="ghost")

    def test_a_mounted_file_is_written_over(self, box: Container) -> None:
        put_tar(box, member("hosts", content=b"127.0.0.1 localhost\n"), "/etc")
        assert box.sh("cat /etc/hosts").out == "127.0.0.1 localhost\n"

    def test_a_full_disk_is_told_with_the_name(self, box: Container, tmp_path: Path) -> None:
        (tmp_path / "much").write_bytes(bytes(3 << 20))
        with pytest.raises(GuestError) as raised:
            files.put(box.machine, tmp_path / "much", "/scratch")
        assert (raised.value.fault.errno, raised.value.fault.object) == ("ENOSPC", "much")
        box.sh("rm /scratch/*")

    def test_a_local_failure_ends_the_transfer(self, box: Container, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way of a folder")
        with pytest.raises(HostError):
            files.get(box.machine, "/bin", tmp_path / "file")
        with pytest.raises(HostError, match="no-such"):
            files.put(box.machine, tmp_path / "no-such", "/tmp")
        assert box.machine.ping().monotonic_ns > 0

    def test_a_worker_that_is_killed_is_told(self, box: Container) -> None:
        """Nobody reads the archive, so its worker waits, and a process of the container kills it."""
        box.sh("dd if=/dev/zero of=/long bs=1M count=20")
        reading, writing = os.pipe()
        told: list[BaseException] = []

        def get() -> None:
            try:
                files.get_archive(box.machine, "/long", writing)
            except (GuestError, OSError) as error:
                told.append(error)

        thread = threading.Thread(target=get)
        thread.start()
        like_init = ("for p in /proc/[0-9]*; do [ $p != /proc/1 ] && cmp -s $p/cmdline /proc/1/cmdline && "
                     "echo ${p#/proc/}; done")
        deadline = time.monotonic() + 60
        while not (worker := box.sh(like_init).out.split()):
            assert time.monotonic() < deadline
        box.sh(f"kill -9 {worker[0]}")
        os.set_blocking(reading, False)
        while thread.is_alive():  # what was under way is read
            assert time.monotonic() < deadline + 60
            with suppress(BlockingIOError):
                os.read(reading, 1 << 20)
            thread.join(0.02)
        for handle in (reading, writing):
            os.close(handle)
        assert isinstance(told[0], GuestError)
        assert told[0].fault.errno == "ECANCELED"
        box.sh("rm /long")

    def test_transfers_leave_nothing_behind(self, box: Container) -> None:
        def some() -> None:
            for _ in range(5):
                get_tar(box, "/bin/busybox")
                put_tar(box, member("x", content=b"x" * 100_000), "/tmp")

        some()
        handles = "set -- /proc/1/fd/*; echo $#"
        before = box.sh(handles).out
        assert box.growth_kib(some, 4) < 64  # less than an archive
        box.until(f"{handles} | awk '$1 <= {int(before)}' | wc -l", "1")  # what the last one had is just being closed


class TestDiff:
    def changes(self, box: Container) -> list[str]:
        return [str(change) for change in files.diff(box.machine)]

    @pytest.mark.parametrize("memory", [False, True])
    def test_exactly_what_has_changed(self, home: Path, demo_layout: Path, memory: bool) -> None:
        """One step after the other, in a container of its own, on a disk or in memory."""
        with container("--network", "none", "-v", "/data/deep", "--tmpfs", "/tmp/mem", f"oci:{demo_layout}:demo",
                       "sleep", "100000", start=False) as box:
            if memory:
                box.spec = box.spec.but(root=box.spec.root.but(writable=None))
            box.start()
            assert self.changes(box) == []
            box.sh("touch /test")
            assert self.changes(box) == ["A /test"]
            box.sh("rm /test; echo x >> /etc/passwd")
            assert self.changes(box) == ["C /etc/passwd"]
            box.sh("rm /etc/group; mkdir -p /new/sub; touch /new/sub/file /data/deep/in-volume /tmp/mem/x /dev/x")
            before = ["C /etc", "D /etc/group", "C /etc/passwd", "A /new", "A /new/sub", "A /new/sub/file"]
            assert self.changes(box) == before
            box.sh("touch /data/beside")
            assert self.changes(box) == ["C /data", "A /data/beside", *before]
            box.sh("rm -r /data/beside /new /usr; mkdir /usr; chmod 711 /root")
            told = self.changes(box)
            assert {"C /root", "C /usr", "D /usr/bin"} <= set(told)
            assert not [line for line in told if line.startswith("A ")]


def test_a_read_only_root_takes_nothing(home: Path, demo_layout: Path, rich: Path) -> None:
    with container("--network", "none", "--read-only", "--tmpfs", "/tmp", f"oci:{demo_layout}:demo",
                   "sleep", "100000") as box:
        with pytest.raises(GuestError) as raised:
            files.put(box.machine, rich, "/root")
        assert raised.value.fault.errno == "EROFS"
        files.put(box.machine, rich / "plain", "/tmp")
        assert box.sh("cat /tmp/plain | wc -l").out.strip() == "3"
        assert files.diff(box.machine) == []


class TestStat:
    def test_a_file(self, box: Container) -> None:
        box.sh("printf 12345 > /tmp/five; chmod 4750 /tmp/five; chown 12:34 /tmp/five; touch -d @1234567890 /tmp/five")
        found = files.stat(box.machine, b"/tmp/five")
        assert found == FileStat(name=b"five", mode=stat.S_IFREG | 0o750, size=5, mtime_ns=1234567890 * 10**9,
                                 uid=12, gid=34)

    def test_links_are_told_and_not_followed(self, box: Container) -> None:
        box.sh("ln -s ../../../../../etc /tmp/out; ln -s out/passwd /tmp/two; ln -s /no/such /tmp/nowhere")
        assert files.stat(box.machine, b"/tmp/two").link == b"out/passwd"
        assert files.stat(box.machine, b"/tmp/two").target == b"/etc/passwd"
        assert files.stat(box.machine, b"/tmp/nowhere").target == b"/no/such"
        assert stat.S_ISDIR(files.stat(box.machine, b"/tmp/out/").mode)

    def test_the_root_is_the_containers(self, box: Container) -> None:
        assert stat.S_ISDIR(files.stat(box.machine, b"/").mode)
        assert files.stat(box.machine, b"/../../tmp/./five").size == 5
        for path in (b"/proc/1/root/init", b"/init"):  # the agent's own root has it
            with pytest.raises(GuestError):
                files.stat(box.machine, path)

    def test_what_is_not_there(self, box: Container) -> None:
        with pytest.raises(GuestError) as raised:
            files.stat(box.machine, b"/no/such")
        assert (raised.value.fault.step, raised.value.fault.errno) == ("stat", "ENOENT")
        assert raised.value.fault.object == "/no/such"
