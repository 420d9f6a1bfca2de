"""NFS in the agent: what is decided before a system call, and children that are waited for so long."""

from __future__ import annotations

import errno
import os
import time

import pytest

from tether.faults import TetherError, fault_of, one_line
from tether.kernel.deadline import errno_within
from tether.kernel.syscalls import MS_NOATIME, MS_NOSUID, MS_RDONLY
from tether.rootfs import shares
from tether.rootfs.inside import Mount
from tether.spec import Disk, Identity, Network, Process, Root, Share, Spec, Tmpfs, Volume

SHARE = Share(path=b"/data", source="10.0.2.2:/export", options="addr=10.0.2.2,nfsvers=4.1")
SPEC = Spec(id="ab", identity=Identity(entropy=b"", clock_ns=0), root=Root(layers=()), network=Network(hostname="x"),
            process=Process(args=()), shares=(SHARE,))


class TestPlan:
    def test_what_the_kernel_knows_goes_to_it(self) -> None:
        options = "addr=10.0.2.2,nfsvers=3,port=2050,mountport=2051,soft,timeo=20,nolock"
        item = shares.plan(SHARE.but(options=options))
        assert item == Mount(path=b"/data", kind="nfs", source="10.0.2.2:/export", options=options)

    def test_flags_become_flags_and_words_for_mount_are_left_out(self) -> None:
        words = "_netdev,addr=10.0.2.2,rw,nofail,noatime,x-systemd.automount,nosuid,defaults,comment=mine"
        item = shares.plan(SHARE.but(options=words, kind="nfs4"))
        assert (item.flags, item.options, item.kind) == (MS_NOATIME | MS_NOSUID, "addr=10.0.2.2", "nfs4")

    @pytest.mark.parametrize("share", [SHARE.but(read_only=True, options="rw"), SHARE.but(options="ro")])
    def test_read_only(self, share: Share) -> None:
        assert shares.plan(share).flags == MS_RDONLY

    def test_another_kind(self) -> None:
        with pytest.raises(TetherError, match="of a kind that is not known: cifs"):
            shares.check(SPEC.but(shares=(SHARE.but(kind="cifs"),)))


class TestBelow:
    @pytest.mark.parametrize("path", [b"/data", b"/data/", b"/data/below"])
    def test_what_it_would_hide_is_refused(self, path: bytes) -> None:
        for spec in (SPEC.but(tmpfs=(Tmpfs(path=path),)), SPEC.but(volumes=(Volume(disk=Disk(label="x"), path=path),))):
            with pytest.raises(TetherError, match="is in the NFS volume /data"):
                shares.check(spec)

    @pytest.mark.parametrize("path", [b"/dat", b"/data2", b"/", b"/other/data"])
    def test_all_else_is_not(self, path: bytes) -> None:
        shares.check(SPEC.but(tmpfs=(Tmpfs(path=path),)))


class TestErrors:
    def said(self, number: int, options: str = "addr=10.0.2.2,nfsvers=4.1") -> str:
        error = shares.failure(shares.plan(SHARE.but(options=options)), number, 30)
        return one_line(fault_of("mount shares", error))

    @pytest.mark.parametrize(("number", "words"), [
        (errno.ECONNREFUSED, "Connection refused [ECONNREFUSED] (is an NFS server listening there? NFS 3 also"),
        (errno.EACCES, 'Permission denied [EACCES] (does the server export this to this machine, and to ports above'),
        (errno.ENOENT, "No such file or directory [ENOENT] (the server has no such export; with NFS 4"),
        (errno.EPROTONOSUPPORT, "Protocol not supported [EPROTONOSUPPORT] (the server does not speak this version:"),
        (errno.EINVAL, "Invalid argument [EINVAL] (the kernel wants addr= with a number, and does not take one"),
        (errno.ENODEV, "the kernel of this VM has no NFS client [ENODEV] (make pico builds one that has"),
        (errno.ETIMEDOUT, "was not mounted within 30 s [ETIMEDOUT] (the server takes connections, or"),
        (errno.EHOSTUNREACH, "No route to host [EHOSTUNREACH] (is there a way to it"),
        (errno.ENOSPC, "No space left on device [ENOSPC]"),
    ])  # fmt: skip
    def test_each_has_its_hint(self, number: int, words: str) -> None:
        assert self.said(number).startswith(f"tether: mount shares: NFS 10.0.2.2:/export on /data: {words}")

    @pytest.mark.parametrize(("options", "wanted"), [
        ("addr=1.2.3.4,nfsvers=3", True), ("addr=1.2.3.4", True), ("addr=1.2.3.4,vers=3,nolock", False),
        ("nfsvers=3,local_lock=all", False), ("nfsvers=4", False), ("vers=4.2", False),
    ])  # fmt: skip
    def test_locks_of_version_3_are_told_of(self, options: str, wanted: bool) -> None:
        assert ("add nolock" in self.said(errno.ECONNREFUSED, options)) == wanted


class TestChildren:
    def test_what_it_ended_with(self) -> None:
        def fail() -> None:
            raise OSError(errno.EPROTONOSUPPORT, "no")

        def refuse() -> None:
            raise TetherError("it", "will not", errno.EROFS)

        def break_off() -> None:
            raise RuntimeError

        ends = [errno_within(10, work) for work in (lambda: None, fail, refuse, break_off)]
        assert ends == [0, errno.EPROTONOSUPPORT, errno.EROFS, errno.EIO]
        self.collect(4)

    def test_who_takes_too_long_is_killed(self) -> None:
        began = time.monotonic()
        assert errno_within(0.1, lambda: time.sleep(1000)) == errno.ETIMEDOUT
        self.collect(1)
        assert time.monotonic() - began < 100

    def collect(self, count: int) -> None:
        """As the reaper of PID 1 does: it finds each of them."""
        for _ in range(count):
            assert os.waitpid(-1, 0)[0] > 0
