"""The life of the machine itself, and above all its end: whatever ends it, the host is told why."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagebuild.boot import cpio
from imagebuild.boot.boot_image import build_initramfs, plain_image
from imagebuild.boot.initramfs import init_script
from imagebuild.boot.kernel import choose
from tests.vm.ext4_disk import DISK_BYTES, content_of, ext4_drive
from tests.vm.harness import Container, container, text
from tether.kernel.clock import must_step
from tether.link.late_messages import ClockSet, Freeze, SetClock, Thaw
from tether.link.messages import Ping
from tether.link.record import Record
from vch.errors import BootError, DeadlineError, GuestError, MachineError, MachineLostError, UsageError
from vch.machine import keep_clock, machine
from vch.machine.machine import Machine
from vch.qemu import accel
from vch.qemu.boot_plan import boot_files, find_firmware, kernel_arguments
from vch.qemu.config import Accelerator, Drive, MachineConfig

pytestmark = pytest.mark.vm

ROOT = Path(__file__).resolve().parents[2]
GONE_S = 120.0  # for a machine to be gone once something has ended it

# Where PID 1 goes on when its system call returns: x86-64's program counter, the last of the nine words of
# /proc/PID/syscall (of a process that waits; of one that does not, there is but one).
POKE = """until set -- $(cat /proc/1/syscall); [ $# -eq 9 ]; do usleep 10000; done
printf '%b' '{code}' | dd of=/proc/1/mem bs=1 seek=$(($9)) conv=notrunc 2>/dev/null
(true &)
sleep 100"""
READ_NULL = r"\061\300\210\000"  # xor %eax,%eax; mov %al,(%rax)
FOR_EVER = r"\353\376"  # jmp to itself
EXIT_3 = r"\277\003\000\000\000\270\347\000\000\000\017\005"  # mov $3,%edi; mov $231,%eax; syscall: exit_group(3)


@pytest.fixture(scope="module")
def image(home: Path, demo_layout: Path) -> str:
    """The demo image by its layout."""
    return f"oci:{demo_layout}:demo"


def end_of(image: str, script: str) -> MachineError:
    """How a machine ends whose container runs `script`."""
    with container("--privileged", "--network", "none", image, "sh", "-c", script) as made:
        return made.machine.join(GONE_S)


def end_with_init(home: Path, scratch: Path, change: str) -> MachineError:
    """How a machine ends whose PID 1 executes `change` before the agent's main function."""
    kernel = choose(home)
    changed = init_script(ROOT).replace(b"main(BEGAN_NS)", change.encode() + b"\nmain(BEGAN_NS)")
    assert changed != init_script(ROOT)
    image = scratch / "image.cpio"  # of two archives in a row, the kernel unpacks the second over the first
    image.write_bytes(plain_image(build_initramfs(kernel, home)).read_bytes()
                      + cpio.archive([cpio.file("init", changed, 0o755)]))
    words = kernel_arguments(kernel, Accelerator.TCG, 1, debug=False)
    config = MachineConfig(name="t", accelerator=Accelerator.TCG, memory_mib=192, cpus=1,
                           boot=boot_files(kernel, image, words, find_firmware(accel.find_qemu())))
    with pytest.raises(MachineError) as raised, Machine(config, accel.find_qemu()) as made:
        raise made.join(GONE_S)
    return raised.value


class TestPid1Dies:
    def test_by_a_segmentation_fault(self, image: str) -> None:
        error = end_of(image, POKE.format(code=READ_NULL))
        assert isinstance(error, MachineLostError)
        assert "tether: PID 1 was ended by SIGSEGV: segfault at 0 ip " in str(error)
        assert "Segmentation fault at tether/link/reactor.py:" in str(error)

    def test_by_an_exit_that_nobody_asked_for(self, image: str) -> None:
        assert "tether: PID 1 ended with exit code 3 (" in str(end_of(image, POKE.format(code=EXIT_3)))

    def test_by_an_exception_before_there_is_an_agent(self, home: Path, tmp_path: Path) -> None:
        error = end_with_init(home, tmp_path, "from tether.agent import nothing_of_this_name")
        assert isinstance(error, BootError)
        assert "tether: PID 1 ended with exit code 1: ImportError: cannot import name" in str(error)
        assert str(error).count("at /init:") == 1

    def test_for_want_of_memory(self, home: Path, tmp_path: Path) -> None:
        error = end_with_init(home, tmp_path, "held = []\nwhile True: held.append(bytearray(b'x' * 65536))")
        assert "give it more memory: -m" in str(error) or "MemoryError" in str(error)


class TestTheLinkFailsToo:
    FAILS = """from tether.agent import Agent
def serve(*anything): raise RuntimeError('a bug for the test')
Agent.wait_for_start = serve
Agent.farewell = {farewell}"""

    @pytest.mark.parametrize("farewell", ["serve", "lambda *anything: False"])
    def test_the_console_brings_the_reason(self, home: Path, tmp_path: Path, farewell: str) -> None:
        error = end_with_init(home, tmp_path, self.FAILS.format(farewell=farewell))
        assert isinstance(error, GuestError)
        assert error.fault.text == "RuntimeError: a bug for the test"
        assert error.fault.step == "serve"
        assert error.fault.object.startswith("/init:")


def ping_on(hung: Container) -> None:
    """Asks until no answer comes."""
    for _ in range(100):
        hung.machine.tell(Ping()).result(5)
        time.sleep(0.1)


def test_a_pid_1_that_hangs_is_ended_from_outside(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "POWER_OFF_SECONDS", 3.0)
    with container(
        "--privileged", "--network", "none", image, "sh", "-c", POKE.format(code=FOR_EVER)
    ) as hung:
        with pytest.raises(DeadlineError):
            ping_on(hung)
        hung.machine.stop(0, "the test is over")
        assert "guest: it did not power off within 3 s and was killed" in str(hung.machine.join(GONE_S))


class TestTheContainerEndsTheMachine:
    @pytest.mark.parametrize(("command", "told"), [
        ("poweroff -f", "switched the machine off (reboot(2)"),
        ("reboot -f", "reset the machine, or its kernel panicked"),
        ("halt -f", "halted the machine, and it was killed"),  # QEMU has no word for that, and would stay for ever
    ])
    def test_with_reboot(self, image: str, command: str, told: str) -> None:
        assert f"guest: a process in it {told}" in str(end_of(image, command))

    def test_by_asking_pid_1(self, image: str) -> None:
        assert "guest: powered off: a process in it asked PID 1 to stop" in str(end_of(image, "reboot; sleep 1000"))

    def test_with_a_panic(self, image: str) -> None:
        assert "guest kernel: panic: sysrq triggered crash" in str(end_of(image, "echo c > /proc/sysrq-trigger"))


# While it runs: one machine for all of this, in the order in which it stands here.

MIB = 1 << 20
FREED_MIB = 100  # of the 150 that are filled and freed
UNTIL_FREE_S = 120.0  # the kernel reports pages that have been free for two seconds


def resident_mib(living: Container) -> int:
    """Memory of the host that QEMU has."""
    process = living.machine._driver._process
    assert process is not None
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))) // 1024


@pytest.fixture(scope="module")
def living(image: str) -> Iterator[Container]:
    """A container in a machine to which things can be added."""
    hardware = {"max_memory_mib": 1024, "max_cpus": 3, "gives_back": True}
    script = "trap 'echo told to stop; exit 0' TERM; echo up; while :; do sleep 1; done"
    with container("--privileged", "--network", "none", image, "sh", "-c", script, hardware=hardware) as made:
        made.until_says("up")
        yield made


def ask(living: Container, message: Record) -> Record:
    return living.machine.tell(message).result(GONE_S)


def hosts_clock(living: Container) -> None:
    ask(living, SetClock(realtime_ns=time.time_ns()))


class TestHardware:
    def test_memory_and_processors_are_used_as_soon_as_they_are_there(self, living: Container) -> None:
        before = int(living.sh("awk '/MemTotal/ {print $2}' /proc/meminfo").out)
        in_use = living.machine.add_memory(128)
        assert in_use.memory_kib - before == 128 * 1024
        assert living.machine.add_cpus(2).cpus == 3
        assert living.sh("nproc").out == "3\n"
        assert int(living.sh("awk '/MemTotal/ {print $2}' /proc/meminfo").out) == in_use.memory_kib

    def test_what_there_is_no_room_for_is_refused(self, living: Container) -> None:
        with pytest.raises(UsageError, match="there is room for 0"):
            living.machine.add_cpus(1)
        with pytest.raises(UsageError, match="blocks of 128 MiB"):
            living.machine.add_memory(100)
        with pytest.raises(MachineError, match="monitor: device_add: not enough space"):
            living.machine.add_memory(1024)

    def test_memory_that_is_freed_goes_back_to_the_host(self, living: Container) -> None:
        fill = "mount -o remount,size=200m /dev/shm && dd if=/dev/zero of=/dev/shm/fill bs=1M count=150"
        assert living.sh(fill).code == 0
        full = resident_mib(living)
        living.sh("rm /dev/shm/fill")
        deadline = time.monotonic() + UNTIL_FREE_S
        while full - resident_mib(living) < FREED_MIB:
            assert time.monotonic() < deadline, f"of {full} MiB QEMU still has {resident_mib(living)}"
            time.sleep(0.2)


class TestDisks:
    def test_a_disk_comes_and_goes(self, living: Container, tmp_path: Path) -> None:
        living.machine.attach_disk(ext4_drive(tmp_path, "guest"), "/bin/../etc")
        assert "passwd" in living.sh("ls /etc").out.split()  # filled from the image, as any volume
        assert living.sh("echo kept > /etc/new; stat -f -c %T /etc").out != "overlayfs\n"
        busy, _ = living.machine.exec(living.process("sleep", "1000", cwd=b"/etc"))
        with pytest.raises(GuestError) as raised:
            living.machine.detach_disk("/bin/../etc")
        assert raised.value.fault.errno == "EBUSY"
        busy.signal(9)
        busy.wait(GONE_S)
        living.machine.detach_disk("/bin/../etc")
        assert living.sh("ls /etc/new").code != 0
        assert content_of(tmp_path / "guest.raw", "/new") == "kept\n"
        assert "sdc" not in living.sh("ls /sys/block").out

    def test_the_same_path_again(self, living: Container, tmp_path: Path) -> None:
        living.machine.attach_disk(ext4_drive(tmp_path, "second"), "/made/by/us", no_copy=True)
        assert living.sh("echo more > /made/by/us/x; cat /made/by/us/x").out == "more\n"
        living.machine.detach_disk("/made/by/us")
        with pytest.raises(UsageError, match="no disk was attached"):
            living.machine.detach_disk("/made/by/us")

    def test_a_disk_that_is_none_is_refused_and_pulled(self, living: Container, tmp_path: Path) -> None:
        drive = ext4_drive(tmp_path, "empty")
        (tmp_path / "empty.raw").write_bytes(bytes(DISK_BYTES))
        with pytest.raises(GuestError, match="attach volume: ext4 on /dev/sdc"):
            living.machine.attach_disk(drive, "/never")
        living.until("ls /sys/block | grep -c sdc", "0")  # the guest hears that it was pulled, and lets go of it
        with pytest.raises(MachineError, match="monitor: blockdev-add"):
            living.machine.attach_disk(Drive("none", str(tmp_path / "none.vmdk")), "/never")


class TestSuspend:
    def test_what_was_written_is_on_the_disk_and_the_clock_is_right_after(
        self, living: Container, tmp_path: Path
    ) -> None:
        living.machine.attach_disk(ext4_drive(tmp_path, "frozen"), "/frozen")
        living.sh("echo not synced > /frozen/file")
        living.machine.pause()
        assert living.machine._driver.monitor.execute("query-status")["status"] == "paused"
        snapshot = tmp_path / "snapshot.raw"
        shutil.copy(tmp_path / "frozen.raw", snapshot)
        assert content_of(snapshot, "/file") == "not synced\n"
        time.sleep(10)  # by so much the clock would be late
        living.machine.resume()
        asked = time.time_ns()
        assert asked - 5e9 < living.machine.ping().realtime_ns < time.time_ns() + 5e9
        assert living.sh("echo again > /frozen/file; echo here > /file; cat /file").out == "here\n"
        living.machine.detach_disk("/frozen")
        assert content_of(tmp_path / "frozen.raw", "/file") == "again\n"

    def test_a_host_that_never_thaws(self, living: Container) -> None:
        ask(living, Freeze(timeout_ms=10_000))
        began = time.monotonic()
        with pytest.raises(GuestError, match="are frozen already"):
            ask(living, Freeze())
        assert living.sh("echo late > /late; cat /late").out == "late\n"
        assert time.monotonic() - began > 1.0  # it waited for the guest's own end of the freeze
        with pytest.raises(GuestError, match="are not frozen"):
            ask(living, Thaw())

    def test_the_clock_is_slewed_or_stepped(self, living: Container) -> None:
        hosts_clock(living)
        deadline = time.monotonic() + GONE_S
        while True:
            small = ask(living, SetClock(realtime_ns=living.machine.ping().realtime_ns + 20_000_000))
            assert isinstance(small, ClockSet)
            assert small.stepped == must_step(small.behind_ns)
            if not small.stepped:  # else the message was long under way, and its time an old one
                break
            assert time.monotonic() < deadline
        large = ask(living, SetClock(realtime_ns=time.time_ns() + 3600 * 10**9))
        assert isinstance(large, ClockSet)
        assert large.stepped
        assert int(living.sh("date +%s").out) - time.time() > 3000
        hosts_clock(living)
        assert abs(int(living.sh("date +%s").out) - time.time()) < 60


    def test_the_appliance_corrects_a_clock_that_is_wrong(
        self, image: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Unasked, and again and again: the first time may be the check right after the start."""
        monkeypatch.setattr(keep_clock, "EVERY_SECONDS", 1.0)
        with container("--privileged", "--network", "none", image, "sleep", "100000") as made:
            for _ in range(3):
                assert made.sh("date -s @1000000000").code == 0
                made.until(f"[ $(date +%s) -gt {int(time.time()) - 600} ] && echo right", "right", seconds=120)


class TestPowerButton:
    def test_it_ends_the_container_in_good_order_while_its_disks_are_frozen(self, living: Container) -> None:
        ask(living, Freeze(timeout_ms=60_000))
        living.machine.press_power_button()
        error = living.machine.join(GONE_S)
        assert "guest: powered off: the power button was pressed" in str(error)
        assert text(living.out).endswith("told to stop\n")

    def test_with_a_kernel_that_has_its_drivers_in_modules(
        self, image: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Layers checked by a module, too; and the container, which may, loads one itself."""
        monkeypatch.setenv("VCH_KERNEL", "debian-cloud")
        with container("--privileged", "--network", "none", "--verity", image, "sleep", "1000") as other:
            assert other.sh("modprobe isofs && grep -c iso9660 /proc/filesystems").out == "1\n"
            assert "Read-only" in other.sh("touch /lib/modules/$(uname -r)/x").err
            assert "dm-0" in other.sh("ls /sys/block").out
            other.machine.press_power_button()
            assert "guest: powered off: the power button was pressed" in str(other.machine.join(GONE_S))
