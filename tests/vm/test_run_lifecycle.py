"""How `vch run` ends: by itself, by signals, by accidents.  Whatever it is, nothing is left behind."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.vm.conftest import RUN_SECONDS, VCH, Vch
from tests.vm.run_helpers import STEP_SECONDS, gone, machine_of, tree, until_line
from vch.qemu.accel import find_qemu

pytestmark = pytest.mark.vm

# A process that can be asked to stop: says so and exits with a code of its own.
POLITE = "trap 'echo stopping; exit 7' TERM; trap 'echo interrupted; exit 8' INT; echo up; while :; do sleep 0.1; done"
RUDE = "trap '' TERM; echo up; while :; do sleep 0.1; done"

_converted: set[str] = set()


@pytest.fixture
def image(vch: Vch, demo_layout: Path) -> str:
    """The demo image, converted already, so that a test sees no files come that stay on purpose."""
    reference = f"oci:{demo_layout}:demo"
    if reference not in _converted:
        vch("run", "--name", "first", reference, "true")
        _converted.add(reference)
    return reference


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=RUN_SECONDS)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 42", 42), ("exit 255", 255), ("kill -9 $$", 137), ("kill -SEGV $$", 139)]
)
def test_the_exit_code_is_the_containers(vch: Vch, image: str, script: str, code: int) -> None:
    assert vch("run", image, "sh", "-c", script).returncode == code


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("nosuch", 127, b"executable file not found in $PATH"),
        ("/no/such", 127, b"no such file"),
        ("/etc", 126, b"is a directory"),
        ("/etc/passwd", 126, b"permission denied"),
    ],
)
def test_commands_that_cannot_be_executed(vch: Vch, image: str, command: str, code: int, message: bytes) -> None:
    run = vch("run", image, command)
    assert (run.returncode, run.stdout) == (code, b"")
    assert message in run.stderr
    assert run.stderr.count(b"\n") == 1, run.stderr


def test_term_asks_the_container_to_stop(vch: Vch, image: str) -> None:
    process = vch.start("run", image, "sh", "-c", POLITE)
    until_line(process, b"up\n")
    process.terminate()
    assert finish(process)[:2] == (7, b"stopping\n")


def test_a_container_that_does_not_stop_is_killed(vch: Vch, image: str) -> None:
    process = vch.start("run", "--stop-timeout", "1", image, "sh", "-c", RUDE)
    until_line(process, b"up\n")
    process.terminate()
    assert finish(process)[0] == 137


def test_the_images_stop_signal_can_be_replaced(vch: Vch, image: str) -> None:
    process = vch.start("run", "--stop-signal", "INT", image, "sh", "-c", POLITE)
    until_line(process, b"up\n")
    process.send_signal(signal.SIGTERM)
    assert finish(process)[:2] == (8, b"interrupted\n")


def test_other_signals_are_sent_on(vch: Vch, image: str) -> None:
    process = vch.start("run", image, "sh", "-c", "trap 'echo usr1; exit 9' USR1; echo up; while :; do sleep 0.1; done")
    until_line(process, b"up\n")
    process.send_signal(signal.SIGUSR1)
    assert finish(process)[:2] == (9, b"usr1\n")


def test_the_third_interrupt_is_the_last(vch: Vch, image: str) -> None:
    process = vch.start("run", image, "sh", "-c", "trap 'echo again' INT; echo up; while :; do sleep 0.1; done")
    until_line(process, b"up\n")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        until_line(process, b"again\n")  # or two that wait would become one
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 137


def test_interrupted_while_booting(vch: Vch, image: str) -> None:
    before = tree(vch.home)
    process = vch.start("run", "--cold", image, "true")
    machine = machine_of(process)
    os.kill(machine, signal.SIGSTOP)  # it stays where it is, however late the interrupt comes
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert gone(machine)
    assert not tree(vch.home) - before


def test_kill_of_vch_leaves_nothing(vch: Vch, image: str) -> None:
    before = tree(vch.home)
    process = vch.start("run", "--name", "victim", "-v", "/scratch", image, "sh", "-c", "echo up; sleep 1000")
    machine = machine_of(process)
    until_line(process, b"up\n")
    process.kill()
    finish(process)
    assert gone(machine)
    assert not tree(vch.home) - before
    assert vch("run", "--name", "victim", image, "true").returncode == 0  # the name is free again


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSEGV])
def test_kill_of_qemu_is_told(vch: Vch, image: str, blow: signal.Signals) -> None:
    before = tree(vch.home)
    process = vch.start("run", image, "sh", "-c", "echo up; sleep 1000")
    until_line(process, b"up\n")
    machine = machine_of(process)
    resource.prlimit(machine, resource.RLIMIT_CORE, (0, 0))  # nobody wants the memory of a machine as a file
    os.kill(machine, blow)
    code, _, err = finish(process)
    assert code == 137
    assert f"vch: run container: QEMU: killed by {blow.name}".encode() in err
    assert not tree(vch.home) - before


def test_kill_of_qemu_while_booting(vch: Vch, image: str) -> None:
    process = vch.start("run", "--cold", image, "true")
    os.kill(machine_of(process), signal.SIGKILL)
    code, _, err = finish(process)
    assert (code, b"vch: boot: QEMU: killed by SIGKILL" in err) == (125, True)


def test_a_panic_is_told_at_once(vch: Vch, image: str) -> None:
    script = "echo up; sleep 1; echo c > /proc/sysrq-trigger; sleep 1000"
    process = vch.start("run", "--name", "panic", image, "sh", "-c", script)
    until_line(process, b"up\n")
    began = time.monotonic()
    code, _, err = finish(process)
    assert code == 137
    assert b"guest kernel: panic: sysrq triggered crash" in err, err
    assert time.monotonic() - began < STEP_SECONDS


def test_output_whose_reader_goes_away_ends_the_writer(vch: Vch, image: str) -> None:
    process = vch.start("run", image, "yes")
    until_line(process, b"y\n")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(STEP_SECONDS) == 141


def test_a_slow_reader_loses_nothing(vch: Vch, image: str) -> None:
    process = vch.start("run", image, "sh", "-c", "seq 400000; echo last")
    time.sleep(15)  # the process ends meanwhile, its output waits
    code, out, err = finish(process)
    assert (code, out.splitlines()[-2:]) == (0, [b"400000", b"last"]), err
    assert len(out.splitlines()) == 400001


def test_names_are_held_while_a_container_runs(vch: Vch, image: str) -> None:
    process = vch.start("run", "--name", "single", image, "sh", "-c", "echo up; sleep 1000")
    until_line(process, b"up\n")
    second = vch("run", "--name", "single", image, "true")
    assert (second.returncode, b'"single": already in use' in second.stderr) == (125, True)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143


def test_too_little_memory_is_told(vch: Vch, image: str) -> None:
    run = vch("run", "-m", "16m", image, "true")
    assert run.returncode == 125
    assert b"Minimum memory limit allowed is" in run.stderr


def test_the_console_is_shown_when_asked_for(vch: Vch, image: str) -> None:
    process = vch.start("run", "--cold", "-D", image, "true")
    os.kill(machine_of(process), signal.SIGTERM)
    _, _, err = finish(process)
    assert b"--- console ---" in err or b"QEMU: " in err


def test_the_console_says_how_far_the_agent_came(vch: Vch, image: str) -> None:
    run = vch("run", "-D", "--cold", "-u", "nosuch", image, "true")
    assert run.returncode == 125
    said = [line.removeprefix("tether: ") for line in run.stderr.decode().splitlines() if line.startswith("tether: ")]
    assert said[-5:] == ["stack root", "furnish root", "write names", "mount volumes", "configure network"]


def test_the_agents_log_is_shown_from_the_level_asked_for(vch: Vch, image: str) -> None:
    info, warning = (vch("run", "--log-level", level, image, "sh", "-c", "exit 3") for level in ("info", "warning"))
    assert (info.returncode, warning.returncode) == (3, 3)
    assert re.search(rb"^vch: +[0-9.]+ s  tether: info [0-9.]+ step: open link", info.stderr, re.MULTILINE), info.stderr
    assert b" debug " not in info.stderr
    assert warning.stderr == b""


def test_a_clone_that_dies_before_it_wakes_is_booted_instead(
    vch: Vch, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A QEMU of whose clones, which wait for their state, none lives."""
    program = tmp_path / "qemu"
    program.write_text(f'#!/bin/sh\ncase "$*" in *" -incoming "*) kill -9 $$;; esac\nexec {find_qemu()} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("VCH_QEMU", str(program))
    run = vch("run", "-D", image, "echo", "up")
    assert (run.returncode, run.stdout) == (0, b"up\n"), run.stderr
    assert b"a clone of template" in run.stderr
    assert b"it boots, because its clone did not come up: " in run.stderr


def test_a_reader_that_never_reads_does_not_hold_a_stopped_run(vch: Vch, image: str) -> None:
    process = vch.start("run", image, "sh", "-c", "echo up; seq 400000")
    until_line(process, b"up\n")
    time.sleep(3)  # now the pipe is full
    deadline = time.monotonic() + STEP_SECONDS
    while process.poll() is None:  # asked twice is enough; two that wait would become one
        assert time.monotonic() < deadline
        process.terminate()
        time.sleep(1)
    assert process.returncode in (0, 137, 143)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(vch: Vch, image: str, closed: str) -> None:
    command = f'exec "$0" run -i {image} sh -c "cat; echo out; echo err >&2; exit 4" {closed}'
    shell = ["sh", "-c", command, str(VCH)]
    run = subprocess.run(shell, input=b"", capture_output=True, timeout=RUN_SECONDS, check=False)
    assert run.returncode == 4
    assert run.stdout == (b"" if ">&-" in closed.replace("2>&-", "") else b"out\n")
    assert run.stderr == (b"" if "2>&-" in closed else b"err\n")
