"""NFS volumes: a real server on the host (tests/nfs_server.py), and machines that mount what it exports."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vch as package
from tests.nfs_server import CannotServe, MuteServer, NfsServer
from tests.vm.conftest import RUN_SECONDS, Vch
from tests.vm.harness import container
from tests.vm.run_helpers import until_line
from tether.link.messages import Fault
from vch.errors import GuestError
from vch.machine import files

pytestmark = pytest.mark.vm

SLEEP = ("sleep", "100000")
VERSIONS = ("3", "4", "4.1", "4.2")
MUTE_MS = 1500  # how long machines wait here for a server that will not answer
# The end of a machine whose server is gone: 10 s for processes that wait for it and cannot be killed, 10 s to unmount
# (tether/rootfs/shares.py), and what a busy host adds.  The appliance would switch it off after 60 s and more.
END_SECONDS = 45.0


@pytest.fixture(scope="module")
def image(home: Path, demo_layout: Path) -> str:
    return f"oci:{demo_layout}:demo"


@pytest.fixture(scope="module")
def client(image: str) -> bool:
    """Whether the kernel of the machines has an NFS client."""
    with container("--network", "none", image, *SLEEP) as made:
        return made.sh("grep -w nfs /proc/filesystems").code == 0


@pytest.fixture
def needs_client(client: bool) -> None:
    if not client:
        pytest.skip("the kernel of these machines has no NFS client: make pico, VCH_KERNEL=pico")


def serving(share: Path, address: str = "127.0.0.1") -> NfsServer:
    """A server of this folder; skips where there can be none."""
    try:
        return NfsServer(share, address)
    except CannotServe as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NfsServer]:
    share = tmp_path_factory.mktemp("share")
    (share / "from-host").write_text("hello\n")
    with serving(share) as made:
        yield made


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[NfsServer]:
    """One that a test may stop."""
    share = tmp_path / "share"
    share.mkdir()
    with serving(share) as made:
        yield made


# ctypes, because the module mmap keeps a descriptor of its own.
WRITES_MEMORY = """
import ctypes, os
mmap = ctypes.CDLL(None).mmap
mmap.restype = ctypes.c_void_p
READ, WRITE, SHARED = 1, 2, 1
file = os.open("/data/file", os.O_RDWR)
memory = mmap(None, ctypes.c_size_t(4096), READ | WRITE, SHARED, file, ctypes.c_long(0))
os.close(file)
ctypes.memmove(memory, b"last", 4)
"""


def mounted(options: str, path: str = "/data", device: str = ":/rw", more: str = "") -> str:
    """The word of a command line that mounts an export."""
    return f'--mount={value(options, path, device)}{more}'


def value(options: str, path: str = "/data", device: str = ":/rw") -> str:
    """The option's value."""
    return f'type=volume,dst={path},volume-opt=type=nfs,volume-opt=device={device},"volume-opt=o={options}"'


def refused(image: str, *words: str, timeout_ms: int = 30_000) -> Fault:
    """What becomes of a machine with these options."""
    with container(*words, image, "true", start=False) as lost:
        shares = tuple(share.but(timeout_ms=timeout_ms) for share in lost.spec.shares)
        lost.spec = lost.spec.but(shares=shares)
        with pytest.raises(GuestError) as raised:
            lost.start()
        return raised.value.fault


def test_a_kernel_without_a_client_says_so(image: str, client: bool) -> None:
    if client:
        pytest.skip("the kernel of these machines has an NFS client")
    fault = refused(image, mounted("addr=10.0.2.2,nfsvers=4.1"))
    assert (fault.step, fault.object) == ("mount shares", "NFS 10.0.2.2:/rw on /data")
    assert fault.text == "the kernel of this VM has no NFS client"
    assert "make pico" in fault.hint


@pytest.mark.usefixtures("needs_client")
class TestShares:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_files_go_both_ways(self, image: str, server: NfsServer, version: str) -> None:
        script = f"cat /data/from-host; echo guest > /data/from-{version}; grep ' /data ' /proc/mounts"
        with container(mounted(server.options(version)), image, "sh", "-c", script) as made:
            done = made.wait()
        assert (done.code, done.out.splitlines()[0]) == (0, "hello"), done.err
        assert f"vers={version if '.' in version or version == '3' else version + '.0'}," in done.out
        assert (server.share / f"from-{version}").read_text() == "guest\n"

    def test_what_the_host_changes_is_seen(self, image: str, server: NfsServer) -> None:
        with container(mounted(f"{server.options('4.1')},noac"), image, *SLEEP) as made:
            for text in ("one", "another"):
                (server.share / "changing").write_text(text)
                made.until("cat /data/changing", text)

    @pytest.mark.parametrize(("export", "options", "more"), [
        (":/rw", "", ",readonly"), (":/rw", ",ro", ""), (":/ro", "", ""),
    ])  # fmt: skip
    def test_read_only(self, image: str, server: NfsServer, export: str, options: str, more: str) -> None:
        word = mounted(server.options("4.1") + options, device=export, more=more)
        with container(word, image, "sh", "-c", "cat /data/from-host; echo x > /data/refused") as made:
            done = made.wait()
        assert done.out == "hello\n"
        assert "Read-only file system" in done.err
        assert not (server.share / "refused").exists()

    def test_beside_volumes_below_a_root_that_is_read_only(self, image: str, server: NfsServer) -> None:
        script = "cat /vol/in/from-host /deep/er/from-host; touch /x; touch /vol/x /vol/in/below && echo written"
        words = ("--read-only", "-v", "/vol", mounted(server.options("4.1"), "/vol/in"))
        with container(*words, mounted(server.options("3"), "/deep/er"), image, "sh", "-c", script) as made:
            done = made.wait()
        assert done.out == "hello\nhello\nwritten\n"
        assert "/x: Read-only file system" in done.err
        assert (server.share / "below").exists()

    def test_two_machines_share_one_export(self, image: str, own_server: NfsServer) -> None:
        """They have one host name, and one address for the server: it tells them apart all the same."""
        word = mounted(f"{own_server.options('4.1')},noac")
        with container("-h", "web", word, image, *SLEEP, change={"id": "a" * 64}) as one, \
                container("-h", "web", word, image, *SLEEP, change={"id": "b" * 64}) as other:  # fmt: skip
            one.sh("exec 3> /data/shared; echo first >&3; sleep 100000 &")  # it stays open
            other.until("cat /data/shared", "first")
            assert one.sh("flock /data/lock sleep 100000 & sleep 1; flock -n /data/lock true").code != 0
            assert other.sh("flock -n /data/lock true").code != 0
            assert one.sh("echo second >> /data/shared; cat /data/shared").out == "first\nsecond\n"
            assert own_server.clients() == 2

    def test_with_pids_of_its_own_and_as_somebody_else(self, image: str, server: NfsServer) -> None:
        for folder, mode in ((server.share, 0o755), (server.share / "open", 0o777)):
            folder.mkdir(exist_ok=True)
            folder.chmod(mode)
        words = ("--pid", "private", "-u", "nobody", mounted(server.options("4.1")))
        with container(*words, image, "sh", "-c", "echo $$ > /data/open/mine") as made:
            assert made.wait().code == 0
        written = server.share / "open/mine"
        assert (written.read_text(), written.stat().st_uid) == ("1\n", 65534)

    def test_a_restarted_process_finds_it_again(self, image: str, server: NfsServer) -> None:
        words = ("--restart", "on-failure:2", mounted(server.options("4.1")))
        with container(*words, image, "sh", "-c", "echo life >> /data/lives; exit 3") as made:
            assert made.wait().code == 3
        assert (server.share / "lives").read_text() == "life\n" * 3

    def test_copies_go_through_it_and_no_change_of_the_container_is_in_it(
        self, image: str, server: NfsServer, tmp_path: Path
    ) -> None:
        with container(mounted(server.options("4.1")), image, *SLEEP) as made:
            (tmp_path / "put").write_text("by cp\n")
            files.put(made.machine, tmp_path / "put", "/data")
            files.get(made.machine, "/data/from-host", tmp_path / "got")
            assert files.diff(made.machine) == []
        assert (server.share / "put").read_text() == "by cp\n"
        assert (tmp_path / "got/from-host").read_text() == "hello\n"

    def test_over_ipv6(self, image: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("six\n")
        run = ("sh", "-c", "cat /data/file")
        with serving(tmp_path, "::1") as made:
            done = package.Machine.run(image, *run, ip6="fec0::15", mount=value(made.options("4.1", "fec0::2")))
        assert (done.code, done.stdout) == (0, "six\n"), done.stderr


@pytest.mark.usefixtures("needs_client")
class TestVchRun:
    def test_what_the_host_is_called(self, vch: Vch, image: str, server: NfsServer) -> None:
        script = "cat /data/from-host; grep -c 10.0.2.2:/rw /proc/mounts"
        for words, name in (((), "host-gateway"), (("--add-host", "nas:host-gateway"), "nas")):
            run = vch("run", *words, mounted(server.options("4.1", name)), image, "sh", "-c", script)
            assert run.stdout == b"hello\n1\n", run.stderr

    def test_what_is_written_last_is_there_in_the_end(
        self, vch: Vch, python_image: str, own_server: NfsServer
    ) -> None:
        """What is written to memory that is a file (mmap(2)) is written out by nobody's close(2)."""
        (own_server.share / "file").write_bytes(bytes(4096))
        run = vch("run", mounted(own_server.options("4.1")), python_image, "python3", "-c", WRITES_MEMORY)
        assert run.returncode == 0, run.stderr
        assert (own_server.share / "file").read_bytes()[:4] == b"last"

    @pytest.mark.parametrize("version", ["3", "4.1"])
    def test_it_ends_although_the_server_is_gone(
        self, vch: Vch, image: str, own_server: NfsServer, version: str
    ) -> None:
        """With a process that waits for the server, what it wrote on the way, and a volume that is to be clean."""
        script = ("exec 3> /data/lost 4>> /kept/file; echo up; read x; echo kept >&4; "
                  "(dd if=/dev/zero bs=1M count=1 >&3 &); cat /data/nothing; sleep 1000")  # fmt: skip
        volume = f"nfs-{time.monotonic_ns()}"
        words = ("-i", "--stop-timeout", "1", "-v", f"{volume}:/kept", mounted(own_server.options(version)))
        process = vch.start("run", *words, image, "sh", "-c", script)
        try:
            until_line(process, b"up\n")
            own_server.stop()
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            time.sleep(2)
            began = time.monotonic()
            process.terminate()
            _, said = process.communicate(timeout=RUN_SECONDS)
            took = time.monotonic() - began
        finally:
            process.kill()
            own_server.go_on()
        kept = vch("run", "-v", f"{volume}:/kept", image, "cat", "/kept/file")
        shutil.rmtree(vch.home / "volumes" / volume)
        assert took < END_SECONDS, said
        assert process.returncode in (137, 143), said
        assert kept.stdout == b"kept\n"


@pytest.mark.usefixtures("needs_client")
class TestErrors:
    @pytest.mark.parametrize(("version", "number"), [("3", "EACCES"), ("4.1", "ENOENT")])
    def test_an_export_that_is_not_there(self, image: str, server: NfsServer, version: str, number: str) -> None:
        fault = refused(image, mounted(server.options(version), device=":/nothing"))
        assert (fault.step, fault.object) == ("mount shares", "NFS 10.0.2.2:/nothing on /data")
        assert (fault.errno, bool(fault.hint)) == (number, True)

    def test_nothing_listens(self, image: str) -> None:
        fault = refused(image, mounted("addr=10.0.2.2,nfsvers=4.1,port=1"))
        assert (fault.text, fault.errno) == ("Connection refused", "ECONNREFUSED")
        assert fault.hint.startswith("is an NFS server listening there?")

    def test_locks_of_version_3_want_a_daemon(self, image: str, server: NfsServer) -> None:
        fault = refused(image, mounted(server.options("3").replace(",nolock", "")))
        assert (fault.errno, "add nolock" in fault.hint) == ("ECONNREFUSED", True)

    def test_a_version_that_the_server_does_not_speak(self, image: str, server: NfsServer) -> None:
        fault = refused(image, mounted(server.options("2")))
        assert (fault.errno, "nfsvers=" in fault.hint) == ("EPROTONOSUPPORT", True)

    def test_an_option_that_the_kernel_does_not_know(self, image: str, server: NfsServer) -> None:
        fault = refused(image, mounted(f"{server.options('4.1')},wibble=1"))
        assert (fault.errno, "options" in fault.hint) == ("EINVAL", True)

    def test_words_for_mount_itself_are_none_for_the_kernel(self, image: str, server: NfsServer) -> None:
        word = mounted(f"{server.options('4.1')},_netdev,nofail,x-systemd.automount,noatime,nosuid")
        with container(word, image, "sh", "-c", "grep -o '/data nfs4 rw,nosuid,[a-z]*' /proc/mounts") as made:
            assert made.wait().out == "/data nfs4 rw,nosuid,noatime\n"

    @pytest.mark.parametrize("version", ["3", "4.1"])
    def test_a_server_that_answers_nothing(self, image: str, server: NfsServer, version: str) -> None:
        """Of version 3 the mount daemon: the kernel itself would wait for it for three minutes."""
        mute = MuteServer()
        try:
            port, theirs = ("mountport", server.mount_port) if version == "3" else ("port", server.port)
            options = server.options(version).replace(f",{port}={theirs}", f",{port}={mute.port}")
            fault = refused(image, mounted(options), timeout_ms=MUTE_MS)
        finally:
            mute.close()
        assert (fault.text, fault.errno) == ("was not mounted within 1.5 s", "ETIMEDOUT")
        assert "nothing answers" in fault.hint

    def test_what_would_be_hidden_below_it(self, image: str) -> None:
        fault = refused(image, mounted("addr=10.0.2.2"), "--tmpfs", "/data/below")
        assert (fault.step, fault.text) == ("check spec", "is in the NFS volume /data")
