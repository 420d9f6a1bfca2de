"""What `vch` takes of the host: names, ports, disks, settings, verdicts, signals."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagebuild.config_file import load_settings
from vch import settings
from vch.command import doctor
from vch.command.signals import Actions, Interrupted, SignalRouter
from vch.disks import CONTENT, DESCRIPTOR, DiskSet
from vch.errors import DeadlineError, HostError, SettingsError
from vch.locks import NameLock
from vch.ports import Published, check_free, describe_chosen
from vch.promise import Promise
from vch.qemu import accel
from vch.qemu.config import Accelerator
from vch.qemu.process import QemuProcess
from vch.qemu.qmp import Qmp, QmpAnswer, QmpEvent, QmpProtocolError

MIB = 1 << 20


def test_a_name_is_held_by_one(tmp_path: Path) -> None:
    with NameLock(tmp_path, "container", "a"):
        with pytest.raises(HostError, match='container name "a": already in use'):
            NameLock(tmp_path, "container", "a")
        NameLock(tmp_path, "container", "b").release()
        NameLock(tmp_path, "volume", "a").release()
    NameLock(tmp_path, "container", "a").release()
    assert [path.name for path in tmp_path.iterdir()] == ["names.lock"]


def test_a_name_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from vch.locks import NameLock; import time\n" \
           f"held = NameLock(Path({str(tmp_path)!r}), 'container', 'a'); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(HostError):
            NameLock(tmp_path, "container", "a")
        holder.kill()
        holder.wait(60)
    NameLock(tmp_path, "container", "a").release()


def test_ports_are_checked_and_chosen() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=f"127.0.0.1:{port}/tcp: Address already in use"):
            check_free([Published("tcp", "127.0.0.1", port, 80)])
        assert check_free([Published("udp", "127.0.0.1", port, 80)])[0].host_port == port
    asked = [Published("tcp", "127.0.0.1", 0, 80), Published("udp", "127.0.0.1", 0, 53)]
    chosen = check_free(asked)
    assert all(one.host_port > 0 for one in chosen)
    assert describe_chosen(asked, chosen) == [
        f"80/tcp -> 127.0.0.1:{chosen[0].host_port}",
        f"53/udp -> 127.0.0.1:{chosen[1].host_port}",
    ]
    assert describe_chosen(chosen, chosen) == []


def test_disks_without_names_leave_none(tmp_path: Path) -> None:
    disks = DiskSet(tmp_path)
    disks.add_unnamed("top", 64 * MIB)
    (drive,) = disks.drives
    assert drive.volatile
    descriptor = disks.fd_sets[int(drive.path.rpartition("/")[2])]
    text = os.pread(descriptor, 10_000, 0).decode()
    assert f'RW {64 * MIB // 512} FLAT "/dev/fdset/1" 0' in text
    assert stat.S_ISREG(os.fstat(disks.fd_sets[1]).st_mode)
    assert os.fstat(disks.fd_sets[1]).st_size == 64 * MIB
    assert os.pread(disks.fd_sets[1], 2, 1024 + 56) == b"\x53\xef"  # ext4's magic number
    assert list(tmp_path.iterdir()) == []
    disks.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_volumes_are_kept_and_held_by_one(tmp_path: Path) -> None:
    first = DiskSet(tmp_path)
    first.add_volume("volume0", "data", 64 * MIB, read_only=False)
    folder = tmp_path / "volumes/data"
    assert {path.name for path in folder.iterdir()} == {DESCRIPTOR, CONTENT}
    assert not first.drives[0].volatile
    with pytest.raises(HostError, match='volume name "data": already in use'):
        DiskSet(tmp_path).add_volume("volume0", "data", 64 * MIB, read_only=True)
    first.close()
    (folder / CONTENT).write_bytes(b"mine")
    again = DiskSet(tmp_path)
    again.add_volume("volume0", "data", 64 * MIB, read_only=True)
    assert (folder / CONTENT).read_bytes() == b"mine"
    assert again.drives[0].read_only
    again.close()


def test_settings_come_from_environment_file_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[machine]\nmemory = "1g"\ncpus = 2\n[registry."r"]\ninsecure = true\n')
    environ = {"VCH_CONFIG": str(path), "VCH_HOME": str(tmp_path), "VCH_MEMORY": "2g"}
    found = settings.load(environ)
    assert (found.memory, found.cpus, found.accelerator, found.home) == (2 << 30, 2, "auto", tmp_path)
    plain = settings.load({"HOME": str(tmp_path)})
    assert (plain.memory, plain.home) == (settings.DEFAULT_MEMORY, tmp_path / ".local/share/vch")
    assert load_settings(environment=environ).registries.insecure == {"r"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[machine]\nmemroy = 1\n", "machine.memroy: no such setting"),
        ('[machine]\nmemory = "lots"\n', "machine.memory: invalid size: 'lots'"),
        ('[machine]\naccelerator = "xen"\n', "'xen' is none of auto, kvm, tcg"),
        ("[machine]\ncpus = 0\n", "machine.cpus: '0' is no number of processors"),
        ("machine = 1\n", "machine: not a table"),
        ("[machine\n", "config.toml"),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(SettingsError, match=message.replace("(", r"\(")):
        settings.load({"VCH_CONFIG": str(tmp_path / "config.toml"), "HOME": "/"})


def fake_qemu(tmp_path: Path, script: str) -> str:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"kernel")
    return path


# Finds the console's file descriptor in its arguments, as QEMU would.
CONSOLE = 'for a; do case $a in fd=*,set=0) fd=${a#fd=}; fd=${fd%,*};; esac; done; say() { eval "echo $1 >&$fd"; }; '


@pytest.fixture
def kvm_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if /dev/kvm opened."""
    monkeypatch.setattr(accel, "KVM_DEVICE", Path("/dev/null"))


@pytest.mark.usefixtures("kvm_there")
@pytest.mark.parametrize(
    ("script", "verdict", "reason"),
    [
        ("say 'Kernel panic'; exit 0", Accelerator.KVM, "the kernel ran under KVM"),
        ("sleep 200", Accelerator.TCG, "did not run within"),
        ("echo 'qemu: no such thing' >&2; exit 1", Accelerator.TCG, "QEMU cannot use /dev/null"),
    ],
)
def test_kvm_is_believed_after_a_boot_only(
    tmp_path: Path, kernel: Path, script: str, verdict: Accelerator, reason: str
) -> None:
    began = time.monotonic()
    found = accel.probe(kernel, fake_qemu(tmp_path, CONSOLE + script), seconds=1.0 if "sleep" in script else 60.0)
    assert (found.accelerator, reason in found.reason) == (verdict, True), found
    assert time.monotonic() - began < 100  # whoever hangs is not waited for


@pytest.mark.usefixtures("kvm_there")
def test_the_verdict_is_remembered_for_this_kernel_and_qemu(tmp_path: Path, kernel: Path) -> None:
    count = tmp_path / "count"
    program = fake_qemu(tmp_path, f"{CONSOLE} echo x >> {count}; say 'Kernel panic'")
    state = tmp_path / "state"
    for _ in range(3):
        assert accel.choose("auto", state, kernel, program).accelerator is Accelerator.KVM
    assert count.read_text() == "x\n"
    accel.choose("auto", state, kernel, program, fresh=True)
    kernel.write_bytes(b"another kernel")
    accel.choose("auto", state, kernel, program)
    assert count.read_text() == "x\nx\nx\n"
    for file in state.iterdir():
        file.write_text("damaged")
    accel.choose("auto", state, kernel, program)
    assert count.read_text() == "x\nx\nx\nx\n"


def test_the_user_and_the_host_can_spare_the_probe(
    tmp_path: Path, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert accel.choose("kvm", tmp_path, kernel, "/none").accelerator is Accelerator.KVM
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "none")
    found = accel.choose("auto", tmp_path, kernel, "/none")
    assert (found.accelerator, "there is no" in found.reason) == (Accelerator.TCG, True)
    with pytest.raises(HostError, match="apt-get install qemu-system-x86"):
        accel.find_qemu("qemu-system-none")


def test_qemu_dies_with_the_thread_that_started_it(tmp_path: Path) -> None:
    program = fake_qemu(tmp_path, "exec sleep 60")
    code = f"from vch.qemu.process import QemuProcess; import os\n" \
           f"print(QemuProcess([{program!r}], ()).pid, flush=True); os.kill(os.getpid(), 9)"
    told = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=100, check=False).stdout
    deadline = time.monotonic() + 60
    while Path(f"/proc/{int(told)}/exe").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_qemus_complaints_are_kept_and_bounded(tmp_path: Path) -> None:
    program = fake_qemu(tmp_path, "echo 'qemu-system-x86_64: -x: no such option' >&2; exit 3")
    process = QemuProcess([program], ())
    deadline = time.monotonic() + 60
    while process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ended = process.close()
    assert (ended.status, ended.complaint, ended.killed_by) == (3, "-x: no such option", 0)
    with pytest.raises(HostError, match="not installed"):
        QemuProcess([str(tmp_path / "none")], ())


def test_the_monitor_protocol() -> None:
    answers: list[QmpAnswer] = []
    qmp = Qmp()
    qmp.execute("stop", done=answers.append)
    qmp.execute("quit", {"now": True}, answers.append)
    assert qmp.transmit().count(b"\n") == 3
    assert qmp.transmit() == b""
    assert qmp.receive(b'{"QMP": {"version": {}}}\r\n{"return": {}}\r\n{"ret') == []
    event = b'urn": 1}\r\n{"event": "SHUTDOWN", "data": {"guest": true}, "timestamp": {}}\r\n'
    assert qmp.receive(event) == [QmpEvent("SHUTDOWN", {"guest": True})]
    qmp.receive(b'{"error": {"class": "x", "desc": "no"}}\r\n')
    assert answers == [QmpAnswer("stop", 1), QmpAnswer("quit", None, "no")]
    for noise in (b"[]\n", b"x\n", b'{"return": 1}\n', b"x" * 5_000_000):
        with pytest.raises(QmpProtocolError):
            Qmp().receive(noise) if b"return" not in noise else qmp.receive(noise)
    qmp.execute("stop", done=answers.append)
    qmp.closed("gone")
    assert answers[-1] == QmpAnswer("stop", error="gone")


def test_promises_are_kept_broken_or_late() -> None:
    promise: Promise[int] = Promise("the number")
    with pytest.raises(DeadlineError, match="the number"):
        promise.result(0.01)
    seen: list[int] = []
    promise.then(lambda kept: seen.append(kept.result(0)))
    promise.keep(1)
    promise.keep(2)
    promise.fail(ValueError())
    assert (promise.result(0), seen) == (1, [1])
    broken: Promise[int] = Promise("x")
    broken.fail(HostError("a", "b", "c"))
    for _ in range(2):
        with pytest.raises(HostError):
            broken.result(None)


@pytest.fixture
def no_nohup() -> Iterator[None]:
    """The router leaves a signal alone that was ignored when it came."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("no_nohup")
def test_signals_before_and_while_the_container_runs() -> None:
    told: list[object] = []
    actions = Actions(
        lambda: told.append("stop"), lambda: told.append("kill"), told.append, lambda: told.append("resize")
    )
    before = signal.getsignal(signal.SIGTERM)
    with SignalRouter() as router:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with pytest.raises(Interrupted) as caught:
                os.kill(os.getpid(), number)
            assert caught.value.number == number
        os.kill(os.getpid(), signal.SIGUSR1)  # means nothing yet
        router.running(actions)
        for number in (signal.SIGWINCH, signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, *[signal.SIGINT] * 3):
            os.kill(os.getpid(), number)
        router.running(None)
        assert told == ["resize", 10, "stop", "kill", 2, 2, 2, "kill"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_doctor_reads_what_the_host_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.parse_version("QEMU emulator version 7.2.22 (Debian)\nx") == (7, 2, 22)
    assert doctor.parse_version("nothing") is None
    assert doctor.read_meminfo("MemTotal: 1 kB\nMemAvailable:    2048 kB\n", "MemAvailable") == 2 * MIB
    found = doctor.examine(settings.Settings(home=tmp_path, qemu="qemu-system-none"))
    levels = {finding.subject: finding.level for finding in found}
    assert levels["QEMU"] is doctor.Level.BAD
    assert levels["disk"] is not doctor.Level.BAD
    monkeypatch.setenv("VCH_HOME", str(tmp_path))
    monkeypatch.setenv("VCH_QEMU", "qemu-system-none")
    assert doctor.main(["--json"]) == 1


def test_importing_vch_is_cheap() -> None:
    """What only registries, tables and asyncio need must not be loaded on the way to a machine."""
    needed = "vch.command.run, vch.command.cli, imagebuild.transfer.fetch, imagebuild.sources.open_source"
    code = f"import sys, {needed}; print(' '.join(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"requests", "rich", "asyncio", "urllib3", "ssl", "tomllib"} & set(told.stdout.split())

