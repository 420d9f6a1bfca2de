"""Clones of real templates: that each is somebody, what happens when one cannot be made, and what is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from imagebuild.demo import demo_layers, fetch_busybox
from imagebuild.oci.compose import LayerTar, write_layout
from tests.vm.conftest import RUN_SECONDS, VCH, Vch
from tests.vm.harness import container
from tests.vm.run_helpers import STEP_SECONDS, gone, machines_of, until_line
from vch.clone.resume import Resume
from vch.clone.store import MEMORY, RECORD, STATE, describe_files
from vch.machine import machine as machine_module

pytestmark = pytest.mark.vm

CLONES = 5  # whole ones; tests/vm/test_clone_identity.py has a hundred
CLOCK_SECONDS = 0.05
CORRECTED_SECONDS = 240.0  # less than until the first regular check; 128 ms are slewed away in that time
A_CLONE, BOOTS, MADE = b"a clone of template", b"it boots", b"is made"

WHO_AM_I = """
cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id
head -c 16 /dev/urandom | od -An -tx1
hostname
cat /sys/class/net/eth0/address
mktemp -u
"""
RANDOM_PYTHON = "import random, os, uuid; print(random.random(), os.getrandom(8).hex(), uuid.uuid4(), hash('a'))"


@pytest.fixture
def image(home: Path, demo_layout: Path) -> str:
    return f"oci:{demo_layout}:demo"


def the_template(store: Path) -> Path:
    """The one that is in a store."""
    (found,) = [path for path in store.iterdir() if not path.name.startswith(".")]
    return found


def reseal(folder: Path) -> None:
    """Makes the record fit files that a test has changed: as if they had been made so."""
    opened = [os.open(folder / name, os.O_RDONLY) for name in (MEMORY, STATE)]
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, **describe_files(*opened)}))
    for descriptor in opened:
        os.close(descriptor)


# identity


def test_no_two_clones_are_alike(vch: Vch, image: str) -> None:
    said = []
    for _ in range(CLONES):
        run = vch("run", "-D", image, "sh", "-c", WHO_AM_I)
        assert A_CLONE in run.stderr, run.stderr
        assert run.returncode == 0
        said.append(run.stdout.decode().splitlines())
    for index, lines in enumerate(zip(*said, strict=True)):
        assert len(set(lines)) == CLONES, (index, lines)


def test_their_programs_draw_numbers_of_their_own(home: Path, python_image: str) -> None:
    said = []
    for _ in range(3):
        with container(python_image, "python3", "-c", RANDOM_PYTHON) as made:
            said.append(made.wait().out.split())
            assert made.machine.cloned
    for values in zip(*said, strict=True):
        assert len(set(values)) == len(said), values


def test_the_clock_is_the_hosts(home: Path, image: str) -> None:
    with container(image, "sleep", "100") as made:
        assert made.machine.cloned
        best, deadline = 1.0, time.monotonic() + CORRECTED_SECONDS
        while best >= CLOCK_SECONDS:  # a host that was busy while the time was on its way has it corrected
            assert time.monotonic() < deadline, best
            time.sleep(0.05)
            asked = time.time()
            guest = made.machine.ping().realtime_ns / 1e9
            answered = time.time()
            best = min(best, max(asked - guest, guest - answered, 0.0))
        assert made.sh("cat /proc/uptime").code == 0


def test_the_nic_has_its_own_address_and_works(vch: Vch, image: str) -> None:
    run = vch("run", "-D", image, "sh", "-c", "cat /sys/class/net/eth0/address; ip -o -4 addr; ip route")
    assert A_CLONE in run.stderr
    told = run.stdout.decode()
    assert re.match(r"02:(?!00:00:00:00:00)", told)
    assert "10.0.2.15/24" in told
    assert "default via 10.0.2.2" in told


def test_an_image_that_leaves_its_machine_id_open_gets_one(vch: Vch, tmp_path: Path) -> None:
    top = LayerTar().directory("etc").file("etc/machine-id", b"")
    write_layout(tmp_path / "open", [*demo_layers(fetch_busybox()), top.tar()], {"Cmd": ["hello"]}, tag="x")
    said = [vch("run", f"oci:{tmp_path}/open:x", "cat", "/etc/machine-id").stdout for _ in range(2)]
    assert all(re.fullmatch(rb"[0-9a-f]{32}\n", line) for line in said), said
    assert len(set(said)) == 2


def test_volumes_are_plugged_in(vch: Vch, image: str) -> None:
    for write in ("echo a >", "echo b >>"):
        run = vch("run", "-D", "-v", "cloned:/v", "-v", "/scratch", image, "sh", "-c", f"{write} /v/f; cat /v/f")
        assert A_CLONE in run.stderr
    assert run.stdout == b"a\nb\n"


# memory

MEMORY_OF_IT = "awk '/MemTotal/ {print $2}' /proc/meminfo; cat /proc/sys/kernel/threads-max; ulimit -u"


def memory_told(vch: Vch, image: str, size: str) -> tuple[list[int], bytes]:
    """KiB, threads and processes that a machine of this size may have; and what was said of how it came to be."""
    run = vch("run", "-D", "-m", size, image, "sh", "-c", MEMORY_OF_IT)
    assert A_CLONE in run.stderr, run.stderr
    return [int(line) for line in run.stdout.split()], run.stderr


def test_more_memory_than_the_template_has(vch: Vch, image: str, own_templates: Path) -> None:
    (less, threads, processes), _ = memory_told(vch, image, "256m")
    more, said = memory_told(vch, image, "512m")
    assert b"256 MiB of memory are plugged in" in said
    assert MADE not in said
    assert more[0] - less == 256 * 1024
    assert (more[1] > 2 * threads, more[2] > 2 * processes) == (True, True)
    assert vch("template", "build", "-m", "512m").returncode == 0
    own, said = memory_told(vch, image, "512m")
    assert b"plugged in" not in said
    assert all(abs(one - other) < other // 10 for one, other in zip(own, more, strict=True)), (own, more)


def test_less_memory_has_a_template_of_its_own(vch: Vch, image: str, own_templates: Path) -> None:
    (kib, *_), said = memory_told(vch, image, "128m")
    assert MADE in said
    assert kib < 128 * 1024


# falling back


def test_cold_is_cold(vch: Vch, image: str) -> None:
    run = vch("run", "-D", "--cold", image, "echo", "x")
    assert run.stdout == b"x\n"
    assert A_CLONE not in run.stderr


def test_a_template_is_made_once_and_says_nothing(vch: Vch, image: str, own_templates: Path) -> None:
    first = vch("run", image, "echo", "x")
    assert (first.stdout, first.stderr) == (b"x\n", b"")
    (listed,) = json.loads(vch("template", "ls", "--json").stdout)
    second = vch("run", "-D", "--entrypoint", "echo", image, "x")
    assert MADE not in second.stderr
    assert A_CLONE in second.stderr
    assert (own_templates / listed["key"] / MEMORY).exists()
    assert listed["key"][:12].encode() in vch("template", "ls").stdout
    assert vch("template", "rm", listed["key"][:6]).stdout.decode().strip() == listed["key"]
    assert vch("template", "rm", listed["key"]).returncode == 125
    vch("template", "rm", "--all")
    assert list(own_templates.iterdir()) == []


def test_damaged_templates(vch: Vch, image: str, own_templates: Path) -> None:
    """One after the other, because each needs a template: truncated; state of another machine; memory of nobody."""
    vch("template", "build")
    os.truncate(the_template(own_templates) / MEMORY, 4096)
    run = vch("run", "-D", image, "echo", "x")
    assert run.stdout == b"x\n"
    assert MADE in run.stderr  # the damage was seen, and the template made anew

    folder = the_template(own_templates)
    state = (folder / STATE).read_bytes()
    (folder / STATE).write_bytes(state[: len(state) // 2])
    reseal(folder)
    run = vch("run", "-D", image, "echo", "x")
    assert run.stdout == b"x\n"
    assert b"it boots, because its clone did not come up" in run.stderr
    assert not folder.exists()
    assert vch("run", image, "echo", "x").stdout == b"x\n"
    assert not folder.exists()  # not tried again at once

    (own_templates / f".failed-{folder.name}").unlink()
    vch("template", "build")
    size = (folder / MEMORY).stat().st_size
    os.truncate(folder / MEMORY, 0)
    os.truncate(folder / MEMORY, size)
    reseal(folder)
    run = vch("run", "-D", image, "echo", "x")
    assert run.stdout == b"x\n"
    assert b"it boots, because its clone did not come up" in run.stderr
    assert run.stderr.count(b"\nx\n") == 0


def test_a_template_of_another_kernel_is_not_used(vch: Vch, image: str, own_templates: Path) -> None:
    vch("template", "build")
    folder = the_template(own_templates)
    stranger = own_templates / ("ab" * 16)
    folder.rename(stranger)
    run = vch("run", "-D", image, "echo", "x")
    assert run.stdout == b"x\n"
    assert MADE in run.stderr
    assert folder.exists()


@pytest.mark.root
def test_too_little_room_for_templates(vch: Vch, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("mounts a small tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", tmp_path], check=True)
    try:
        monkeypatch.setenv("VCH_TEMPLATES", str(tmp_path))
        run = vch("run", "-D", image, "echo", "x")
        assert run.stdout == b"x\n"
        assert b"MiB are free" in run.stderr
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.root
def test_the_folder_fills_up_while_a_template_is_made(
    vch: Vch, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid():
        pytest.skip("mounts a small tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "none", tmp_path], check=True)
    try:
        monkeypatch.setenv("VCH_TEMPLATES", str(tmp_path))
        process = vch.start("run", "-D", image, "echo", "x")
        (maker,) = _until(tmp_path / f"vch-{os.geteuid()}", process, "boots")
        os.kill(maker, signal.SIGSTOP)
        fill(tmp_path / "full")
        os.kill(maker, signal.SIGCONT)
        out, err = process.communicate(timeout=RUN_SECONDS)
        assert out == b"x\n"
        assert b"it boots: boot: QEMU: killed by SIGBUS (its memory is a file for which there was no room" in err
        assert json.loads(vch("template", "ls", "--json").stdout) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def fill(path: Path) -> None:
    """Writes until nothing more can be written."""
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 20)):
            pass


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_clone_that_ends_or_hangs_while_it_wakes(
    home: Path, image: str, monkeypatch: pytest.MonkeyPatch, blow: signal.Signals
) -> None:
    """Another machine takes its place: nothing of it is left, and it has never been told what to run."""
    struck = []

    def strike(resume: Resume) -> None:
        struck.extend(machines_of(os.getpid()))
        os.kill(struck[-1], blow)
        wake(resume)

    with container(image, "sleep", "1000") as made:
        assert made.machine.cloned
    monkeypatch.setitem(machine_module.WAKE_SECONDS, made.machine.config.accelerator, 3.0)
    wake = Resume._run
    monkeypatch.setattr(Resume, "_run", strike)
    with container(image, "sleep", "1000") as made:
        assert len(struck) == 1
        assert not made.machine.cloned
        assert gone(struck[0])
        assert made.sh("echo x").out == "x\n"
        assert len(machines_of(os.getpid())) == 1
    monkeypatch.undo()
    with container(image, "sleep", "1000", start=False) as made:
        assert made.machine.cloned  # what was done to that one says nothing against its template


def test_more_memory_than_the_host_has(vch: Vch, image: str, own_templates: Path) -> None:
    vch("template", "build")
    too_much = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE") >> 27 << 7
    run = vch("run", "-D", "-m", f"{too_much}m", image, "echo", "x")
    assert (run.returncode, run.stdout) == (125, b"")
    assert run.stderr.decode().splitlines()[-1].endswith("Cannot allocate memory (use less memory: -m)")
    assert A_CLONE in vch("run", "-D", image, "true").stderr


def test_no_memory_for_another_clone(vch: Vch, image: str, own_templates: Path) -> None:
    vch("template", "build")
    little = f"ulimit -v 600000; exec {VCH} run -D -m 1g {image} echo x"  # KiB; QEMU wants to map more than that
    run = subprocess.run(["sh", "-c", little], capture_output=True, timeout=RUN_SECONDS, check=False)
    assert (run.returncode, run.stdout) == (125, b"")
    assert run.stderr.decode().splitlines()[-1].endswith("Cannot allocate memory (use less memory: -m)")
    assert A_CLONE in vch("run", "-D", image, "true").stderr


def test_templates_off(vch: Vch, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCH_TEMPLATES", "off")
    assert A_CLONE not in vch("run", "-D", image, "true").stderr
    assert vch("template", "ls").returncode == 125


# cleaning up


def test_a_clone_outlives_its_template(vch: Vch, image: str, own_templates: Path) -> None:
    process = vch.start("run", "-i", image, "sh", "-c", "echo up; read x; md5sum /bin/busybox; echo done")
    until_line(process, b"up\n")
    (listed,) = json.loads(vch("template", "ls", "--json").stdout)
    assert listed["busy"]
    vch("template", "rm", "--all")
    assert list(own_templates.iterdir()) == []
    out, _ = process.communicate(b"go\n", timeout=STEP_SECONDS)
    assert out.endswith(b"done\n")


def test_memory_that_is_truncated_under_a_clone(vch: Vch, image: str, own_templates: Path) -> None:
    process = vch.start("run", "-i", image, "sh", "-c", "echo up; read x; md5sum /bin/busybox; echo done")
    until_line(process, b"up\n")
    os.truncate(the_template(own_templates) / MEMORY, 0)
    out, err = process.communicate(b"go\n", timeout=STEP_SECONDS)
    assert (process.returncode, out) == (137, b"")
    assert b"killed by SIGBUS (its memory is a file" in err


def test_makers_that_are_killed(vch: Vch, image: str, own_templates: Path) -> None:
    """In three phases: before QEMU, while the template boots, and as it is frozen."""
    for phase in ("begun", "boots", "frozen"):
        machine = _killed_in(own_templates, phase)
        assert all(gone(pid) for pid in machine)
        assert json.loads(vch("template", "ls", "--json").stdout) == []
    build = vch("template", "build")
    assert build.returncode == 0, build.stderr
    assert [path.name for path in own_templates.iterdir()] == [build.stdout.decode().strip()]


def test_makers_at_the_same_time(vch: Vch, image: str, own_templates: Path) -> None:
    first = subprocess.Popen([VCH, "template", "build"], stdout=subprocess.PIPE)
    (machine,) = _until(own_templates, first, "boots")
    os.kill(machine, signal.SIGSTOP)  # so that it is not done before the other one comes
    try:
        other = vch("run", "-D", image, "echo", "x")
    finally:
        os.kill(machine, signal.SIGCONT)
    assert other.stdout == b"x\n"
    assert b"just being made" in other.stderr
    assert first.wait(STEP_SECONDS) == 0
    assert A_CLONE in vch("run", "-D", image, "true").stderr


def _phase(store: Path, maker: int, phase: str) -> list[int] | None:
    """The machines of a maker that has come so far; None before."""
    if phase == "begun":
        return [] if list(store.glob(".making-*")) else None
    if phase == "boots":
        return machines_of(maker) or None
    states = [path.stat().st_size for path in store.glob(f".making-*/{STATE}")]
    return machines_of(maker) if any(states) else None


def _until(store: Path, maker: subprocess.Popen[bytes], phase: str) -> list[int]:
    """Waits for a phase; the machines of the maker then, and none if it was over before it was seen."""
    deadline = time.monotonic() + STEP_SECONDS
    while maker.poll() is None:
        found = _phase(store, maker.pid, phase)
        if found is not None:
            return found
        assert time.monotonic() < deadline, f"the maker has not come to the phase {phase!r}"
        time.sleep(0.002)
    return []


def _killed_in(store: Path, phase: str) -> list[int]:
    """Kills a maker in a phase; its machines.  A phase may be over before one has seen it: then there is another maker.
    """
    for _ in range(20):
        maker = subprocess.Popen([VCH, "template", "build"], stdout=subprocess.PIPE)
        machines = _until(store, maker, phase)
        maker.send_signal(signal.SIGSTOP)
        there = maker.poll() is None and _phase(store, maker.pid, phase) is not None
        maker.kill()
        maker.wait()
        if there:
            return machines
        subprocess.run([VCH, "template", "rm", "--all"], check=True, capture_output=True)
    raise AssertionError(f"no maker was caught in the phase {phase!r}")
