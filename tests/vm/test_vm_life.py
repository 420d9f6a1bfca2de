"""The life of the machine itself, and above all its end: whatever ends it, the host is told why."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuild.boot import cpio
from imagebuild.boot.initramfs import build_initramfs, init_script, plain_image
from imagebuild.boot.kernel import choose
from tests.vm.harness import container
from vch import accel
from vch.boot_plan import boot_files, find_firmware, kernel_arguments
from vch.errors import BootError, GuestError, MachineError, MachineLostError
from vch.machine import Machine
from vch.qemu import Accelerator, MachineConfig

pytestmark = pytest.mark.vm

ROOT = Path(__file__).resolve().parents[2]
GONE_S = 60.0  # for a machine to be gone once something has ended it

# Where PID 1 goes on when its system call returns: x86-64's program counter, the last word of /proc/PID/syscall.
POKE = """set -- $(cat /proc/1/syscall)
printf '%b' '{code}' | dd of=/proc/1/mem bs=1 seek=$(($9)) conv=notrunc 2>/dev/null
(true &)
sleep 100"""
READ_NULL = r"\061\300\210\000"  # xor %eax,%eax; mov %al,(%rax)
EXIT_3 = r"\277\003\000\000\000\270\347\000\000\000\017\005"  # mov $3,%edi; mov $231,%eax; syscall: exit_group(3)


@pytest.fixture(scope="module")
def image(home: Path, demo_layout: Path) -> str:
    """The demo image by its layout."""
    return f"oci:{demo_layout}:demo"


def end_of(image: str, script: str) -> MachineError:
    """How a machine ends whose container runs `script`."""
    with container("--network", "none", image, "sh", "-c", script) as made:
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


class TestTheContainerEndsTheMachine:
    def test_with_reboot(self, image: str) -> None:
        assert "guest: a process in it switched the machine off (reboot(2)" in str(end_of(image, "poweroff -f"))

    def test_with_a_panic(self, image: str) -> None:
        assert "guest kernel: panic: sysrq triggered crash" in str(end_of(image, "echo c > /proc/sysrq-trigger"))
