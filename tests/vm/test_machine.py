"""vch.Machine where `vch run` does not lead: machines that do not come up, and what programs do with one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from imagebuild.boot.boot_image import build_initramfs
from imagebuild.boot.kernel import choose
from vch.errors import BootError, MachineError
from vch.machine import machine
from vch.machine.machine import Machine
from vch.qemu import accel
from vch.qemu.boot_plan import boot_files, find_firmware, kernel_arguments
from vch.qemu.config import Accelerator, BootFiles, MachineConfig

pytestmark = pytest.mark.vm

NOT_WAITED_S = 150  # less than what a machine has to come up


@pytest.fixture(scope="module")
def boot(home: Path) -> BootFiles:
    kernel = choose(home)
    words = kernel_arguments(kernel, Accelerator.TCG, 1, debug=False)
    return boot_files(kernel, build_initramfs(kernel, home).path, words, find_firmware(accel.find_qemu()))


def config(boot: BootFiles, memory_mib: int = 256) -> MachineConfig:
    return MachineConfig(name="t", accelerator=Accelerator.TCG, memory_mib=memory_mib, cpus=1, boot=boot)


def refused(config: MachineConfig) -> MachineError:
    began = time.monotonic()
    with pytest.raises(MachineError) as caught, Machine(config, accel.find_qemu()):
        pass
    assert time.monotonic() - began < NOT_WAITED_S
    return caught.value


def test_it_answers_and_is_gone_after_the_block(boot: BootFiles) -> None:
    with Machine(config(boot), accel.find_qemu()) as made:
        assert abs(made.ping().realtime_ns - time.time_ns()) < 1e12
    with pytest.raises(MachineError):
        made.ping()


def test_a_kernel_that_panics(boot: BootFiles) -> None:
    error = refused(config(BootFiles(boot.kernel, None, (*boot.arguments, "root=/dev/none"), boot.firmware)))
    assert isinstance(error, BootError)
    assert str(error).startswith("boot: guest kernel: panic: VFS: Unable to mount root fs")
    assert "Kernel panic" in error.console


def test_a_word_for_tether_that_it_does_not_know(boot: BootFiles) -> None:
    error = refused(config(BootFiles(boot.kernel, boot.initramfs, (*boot.arguments, "tether.nonsense"), boot.firmware)))
    assert "tether.nonsense" in str(error)
    assert "known are" in str(error)


def test_a_machine_that_does_nothing(boot: BootFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine.BOOT_SECONDS, Accelerator.TCG, 45.0)
    words = tuple("panic=0" if word == "panic=-1" else word for word in boot.arguments)
    error = refused(config(BootFiles(boot.kernel, None, (*words, "root=/dev/none"), boot.firmware)))
    assert "it did not come up within 45 s; last heard: " in str(error)


def test_a_qemu_that_refuses_its_command_line(boot: BootFiles) -> None:
    error = refused(config(BootFiles(Path("/no/kernel"), None, (), None)))
    assert "/no/kernel" in str(error)
    assert str(error).startswith("boot: QEMU: ")
