"""What is planned before anything runs: QEMU's command line, the kernel's, and what is made of how a machine ended."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from imagebuild.boot.kernel_cache import Kernel
from tether.link.messages import Ended, Exited, Fault, Goodbye, Signalled
from vch.command.run import exit_code_of
from vch.errors import BootError, GuestError, MachineLostError
from vch.machine.explain import Evidence, Stage, explain, is_missing_command
from vch.machine.session import exit_code
from vch.ports import Published
from vch.qemu import config as qemu
from vch.qemu.boot_plan import boot_files, kernel_arguments
from vch.qemu.config import Accelerator, BootFiles, Channels, Drive, MachineConfig, UserNetwork
from vch.qemu.console import Console
from vch.qemu.process import Ended as QemuEnded

CHANNELS = Channels(qmp=10, link=11, console=12)
CONFIG = MachineConfig(
    name="a,b",
    accelerator=Accelerator.TCG,
    memory_mib=256,
    cpus=2,
    boot=BootFiles(Path("/k"), Path("/i"), ("console=ttyS0", "quiet")),
    drives=(Drive("image", "/d,1.vmdk", read_only=True), Drive("top", "/dev/fdset/2", volatile=True)),
    network=UserNetwork("02:00:00:00:00:01", (Published("udp", "127.0.0.1", 5353, 53),)),
    fd_sets={1: 20, 2: 21},
)


def words(config: MachineConfig = CONFIG) -> list[str]:
    return qemu.command_line(config, CHANNELS, "/usr/bin/qemu")


def values(option: str, line: list[str]) -> list[str]:
    return [after for word, after in pairwise(line) if word == option]


def test_channels_are_inherited() -> None:
    assert values("-chardev", words()) == [
        "socket,id=qmp,fd=10", "file,id=console,path=/dev/fdset/0,append=on", "socket,id=link,fd=11"]
    assert qemu.inherited(CONFIG, CHANNELS) == (10, 11, 12, 20, 21)
    assert values("-add-fd", words()) == ["fd=12,set=0", "fd=20,set=1", "fd=21,set=2"]
    assert "virtserialport,bus=ports.0,chardev=link,name=org.vch.link.0" in values("-device", words())


def test_drives_are_found_by_serial() -> None:
    nodes = [json.loads(text) for text in values("-blockdev", words())]
    assert [(node["node-name"], node["read-only"], node["file"]["filename"]) for node in nodes] == [
        ("drive0", True, "/d,1.vmdk"),
        ("drive1", False, "/dev/fdset/2"),
    ]
    assert [node["cache"]["no-flush"] for node in nodes] == [False, True]
    disks = [text for text in values("-device", words()) if text.startswith("scsi-hd")]
    assert disks[0].endswith("lun=0,drive=drive0,serial=image")
    assert disks[1].endswith("lun=1,drive=drive1,serial=top,werror=enospc")


def test_network() -> None:
    assert values("-netdev", words()) == ["user,id=net,ipv6=off,hostfwd=udp:127.0.0.1:5353-:53"]
    alone = CONFIG._replace(network=None)
    assert not any("net" in text for text in values("-device", words(alone)))
    assert "-netdev" not in words(alone)


def test_base() -> None:
    line = words()
    assert values("-name", line) == ["guest=a,,b"]
    assert (values("-m", line), values("-smp", line)) == (["256M"], ["2"])
    assert values("-append", line) == ["console=ttyS0 quiet"]
    assert values("-accel", line) == ["tcg,thread=multi"]
    assert values("-accel", words(CONFIG._replace(accelerator=Accelerator.KVM))) == ["kvm"]
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(line)
    assert "-bios" not in line


def kernel(name: str, pvh: bool = True) -> Kernel:
    return Kernel(name, "6.1", Path("/bz"), Path("/elf") if pvh else None, Path("/c"), None)


def test_kernel_words_fit_kernel_and_accelerator() -> None:
    pico = kernel_arguments(kernel("pico"), Accelerator.TCG, 1, debug=False)
    assert {"quiet", "panic=-1", "acpi=noirq", "nolapic_timer"} <= set(pico)
    several = kernel_arguments(kernel("pico"), Accelerator.TCG, 2, debug=False)
    assert {"acpi=noirq", "nolapic_timer"}.isdisjoint(several)
    debian = kernel_arguments(kernel("debian-cloud"), Accelerator.TCG, 1, debug=True)
    assert "acpi=noirq" not in debian
    assert {"quiet", "tether.debug"} & set(debian) == {"tether.debug"}
    assert "tsc=reliable" in debian
    assert {"mitigations=off", "tsc=reliable"}.isdisjoint(kernel_arguments(kernel("pico"), Accelerator.KVM, 1, False))


def test_firmware_fits_the_kernel() -> None:
    rom = Path("/qboot")
    assert boot_files(kernel("pico"), Path("/i"), (), rom) == BootFiles(Path("/elf"), Path("/i"), (), rom)
    assert boot_files(kernel("debian-cloud"), Path("/i"), (), rom).firmware is None
    assert boot_files(kernel("pico", pvh=False), Path("/i"), (), rom) == BootFiles(Path("/bz"), Path("/i"), ())


def console(text: str) -> Console:
    made = Console()
    made.feed(text.encode())
    return made


@pytest.mark.parametrize(
    ("evidence", "kind", "sentence"),
    [
        (
            Evidence(Stage.BOOTING, console("x\n[    1.0] Kernel panic - not syncing: VFS: no root\n---[ end ]---\n")),
            BootError,
            "boot: guest kernel: panic: VFS: no root (run it with -D to see the console)",
        ),
        (
            Evidence(Stage.BOOTING, console("Out of memory\nKernel panic - not syncing: System is deadlocked\n")),
            BootError,
            "boot: guest kernel: panic: System is deadlocked (give it more memory: -m)",
        ),
        (
            Evidence(Stage.RUNNING, console("a\r\ntether: serve: disk: broken (replace it)\r\n"), QemuEnded(0, "")),
            MachineLostError,
            "run container: tether: serve: disk: broken (replace it)",
        ),
        (
            Evidence(Stage.RUNNING, console(""), QemuEnded(-9, "")),
            MachineLostError,
            "run container: QEMU: killed by SIGKILL (see whether the host ran out of memory (dmesg))",
        ),
        (
            Evidence(Stage.BOOTING, console(""), QemuEnded(1, "Could not set up host forwarding rule 'x'")),
            BootError,
            "boot: QEMU: Could not set up host forwarding rule 'x' (the port is taken: choose another one with -p)",
        ),
        (
            Evidence(Stage.RUNNING, console(""), QemuEnded(-9, ""), killed="it did not power off within 70 s"),
            MachineLostError,
            "run container: guest: it did not power off within 70 s (run it with -D to see the console)",
        ),
        (
            Evidence(Stage.RUNNING, console(""), QemuEnded(0, ""), shutdown="guest-shutdown"),
            MachineLostError,
            "run container: guest: a process in it switched the machine off (reboot(2), as in `poweroff -f` or "
            "`reboot -f`, ends a container without cleaning up)",
        ),
        (
            Evidence(Stage.BOOTING, console("[  1.5] last line\n"), QemuEnded(0, "")),
            BootError,
            "boot: guest: powered off without a word; last heard: last line (run it with -D to see the console)",
        ),
        (
            Evidence(Stage.READY, console(""), QemuEnded(0, ""), link_failure="generations 1 and 9"),
            BootError,
            "start container: link: generations 1 and 9 (report it: host and guest do not understand each other)",
        ),
        (
            Evidence(Stage.READY, console("x"), None, Goodbye(reason="", fault=Fault(step="s", object="o", text="t"))),
            GuestError,
            "s: o: t",
        ),
    ],
)
def test_why_a_machine_ended(evidence: Evidence, kind: type[Exception], sentence: str) -> None:
    error = explain(evidence)
    assert (type(error), str(error)) == (kind, sentence)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(step="exec", object="x", text="", errno="ENOENT"), 127),
        (Fault(step="exec", object="x", text="", errno="EACCES"), 126),
        (Fault(step="exec", object="x", text="", errno="ENOEXEC"), 126),
        (Fault(step="working directory", object="x", text="", errno="ENOTDIR"), 126),
        (Fault(step="user", object="x", text="", errno=""), 125),
        (Fault(step="mount layers", object="x", text="", errno="ENOENT"), 125),
    ],
)
def test_exit_codes_of_faults(fault: Fault, code: int) -> None:
    assert exit_code_of(GuestError(fault)) == code
    assert is_missing_command(fault) in (code, None)


def test_exit_codes_of_ends() -> None:
    assert exit_code(Ended(session=0, state=Exited(code=3))) == 3
    assert exit_code(Ended(session=0, state=Signalled(number=11, core=True))) == 139
    assert exit_code_of(MachineLostError("a", "b", "c")) == 137
    assert exit_code_of(BootError("a", "b", "c")) == 125


def test_the_console_is_bounded_and_harmless() -> None:
    made = Console(limit=1000)
    for number in range(1000):
        made.feed(b"\x1b[31mline %d\x1b]0;title\x07\r\n" % number)
    assert "line 999" in made.last_words
    assert "\x1b" not in made.text
    assert len(made.text) <= 1000
    assert made.tail(2).count("\n") == 1
    assert Console().last_words == ""
    huge = Console(limit=1000)
    huge.feed(b"x" * 100_000)
    assert len(huge.text) == 1000


@pytest.mark.parametrize(("said", "halts"), [
    (b"[    1.8] x\r\n[    1.793962] reboot: System halted\r\n", True),
    (b"[    1.793962] reboot: System halted\n" + b"x" * 1000 + b"\n", True),
    (b"a program: [    1.793962] reboot: System halted\n", False),
    (b"[    1.793962] reboot: System halted, or so\n", False),
])  # fmt: skip
def test_the_console_tells_that_the_kernel_halts(said: bytes, halts: bool) -> None:
    """However small the pieces are in which it comes."""
    for size in (1, 7, len(said)):
        heard: list[int] = []
        made = Console(on_halt=partial(heard.append, 1))
        for at in range(0, len(said), size):
            made.feed(said[at : at + size])
        assert bool(heard) == halts, size
