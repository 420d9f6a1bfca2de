"""Which accelerator runs our kernel.  Found out by booting it, because nothing less is proof.

/dev/kvm may open, answer every ioctl and even run a HLT, and still hang for ever with a real kernel (nested
virtualisation that is half there).  So the kernel is booted once, with KVM and nothing else: it finds no root file
system, panics, reboots, and QEMU ends.  All of that takes a working KVM a fraction of a second.

The verdict is remembered per boot of the host, QEMU binary and kernel: whatever could change it changes one of these.
"""

from __future__ import annotations

import json
import os
import select
import time
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from vch.errors import HostError
from vch.qemu import config as qemu
from vch.qemu.channel import READ_SIZE, open_channels
from vch.qemu.config import Accelerator, BootFiles, MachineConfig
from vch.qemu.console import Console
from vch.qemu.process import REMEDY_INSTALL, QemuProcess

KVM_DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
VERDICT_PREFIX = "accelerator-"
PROBE_SECONDS = 2.0  # a working KVM needs 0.3 s for this, on a busy host 1 s
PROBE_MEMORY_MIB = 96  # enough for any kernel to reach the search for its root
PROBE_PROOF = "Kernel panic"  # only a kernel that runs can say so
_PROBE_ARGUMENTS = ("console=ttyS0", "panic=-1", "root=/dev/none", "loglevel=4")


class Verdict(NamedTuple):
    """The accelerator, and how it was found."""

    accelerator: Accelerator
    reason: str


class _Key(NamedTuple):
    """All that a verdict depends on."""

    boot_id: str
    qemu: str
    kernel: str


def find_qemu(program: str = qemu.PROGRAM) -> str:
    """The path of QEMU.  Raises HostError with the package to install."""
    # As shutil.which, whose module imports every compressor that there is.
    for folder in ("",) if os.path.dirname(program) else os.get_exec_path():
        path = os.path.join(folder, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise HostError("find QEMU", program, "not installed", REMEDY_INSTALL)


def choose(wanted: str, state: Path, kernel: Path, program: str, *, fresh: bool = False) -> Verdict:
    """The accelerator to use: `wanted` is "kvm", "tcg" or "auto".  `fresh` asks again what is remembered."""
    if wanted != "auto":
        return Verdict(Accelerator(wanted), "set by the user")
    obstacle = _obstacle()
    if obstacle:
        return Verdict(Accelerator.TCG, obstacle)
    key = _key(kernel, program)
    remembered = None if fresh else recall(state, key)
    if remembered is not None:
        return remembered
    verdict = probe(kernel, program)
    remember(state, key, verdict)
    return verdict


def probe(kernel: Path, program: str, seconds: float = PROBE_SECONDS) -> Verdict:
    """Boots `kernel` under KVM; KVM only if the kernel ran to its end in time."""
    started = time.monotonic()
    console = _boot(kernel, program, started + seconds)
    took = time.monotonic() - started
    if PROBE_PROOF in console.text:
        return Verdict(Accelerator.KVM, f"the kernel ran under KVM within {took:.1f} s")
    if took >= seconds:
        heard = f"last heard: {console.last_words}" if console.last_words else "nothing was heard from it"
        cause = f"{KVM_DEVICE} opens, but the kernel did not run within {seconds:.0f} s; {heard}"
        return Verdict(Accelerator.TCG, cause)
    return Verdict(Accelerator.TCG, f"QEMU cannot use {KVM_DEVICE}: {console.last_words or 'it ended at once'}")


def recall(state: Path, key: _Key) -> Verdict | None:
    """The remembered verdict on this host boot, QEMU and kernel."""
    try:
        saved = json.loads(_verdict_file(state, key).read_text(encoding="utf-8"))
        if saved["key"] != key._asdict():
            return None
        return Verdict(Accelerator(saved["accelerator"]), str(saved["reason"]))
    except (OSError, ValueError, KeyError, TypeError):  # absent, damaged or of another version: ask again
        return None


def remember(state: Path, key: _Key, verdict: Verdict) -> None:
    """Keeps a verdict; a state folder that cannot be written only costs the next start two seconds."""
    record = {"key": key._asdict(), "accelerator": verdict.accelerator.value, "reason": verdict.reason}
    file = _verdict_file(state, key)
    fresh = state / f".{file.name}.{os.getpid()}"
    try:
        state.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(record), encoding="utf-8")
        fresh.replace(file)
        _forget_other_boots(state, key)
    except OSError:
        fresh.unlink(missing_ok=True)


def _verdict_file(state: Path, key: _Key) -> Path:
    """One file for each pair of QEMU and kernel, so that two kernels can take turns."""
    return state / f"{VERDICT_PREFIX}{key.boot_id}-{crc32(f'{key.qemu} {key.kernel}'.encode()):08x}.json"


def _forget_other_boots(state: Path, key: _Key) -> None:
    for file in state.glob(f"{VERDICT_PREFIX}*.json"):
        if not file.name.startswith(f"{VERDICT_PREFIX}{key.boot_id}-"):
            file.unlink(missing_ok=True)


def _obstacle() -> str:
    """Why KVM need not even be tried."""
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return f"there is no {KVM_DEVICE}"
    except PermissionError:
        return f"{KVM_DEVICE} may not be opened: add the user to the group kvm"
    except OSError as error:
        return f"{KVM_DEVICE} cannot be opened: {error.strerror}"
    return ""


def _key(kernel: Path, program: str) -> _Key:
    binary, image = os.stat(program), os.stat(kernel)
    return _Key(
        boot_id=BOOT_ID.read_text().strip(),
        qemu=f"{os.path.realpath(program)} {binary.st_size} {binary.st_mtime_ns}",
        kernel=f"{os.path.realpath(kernel)} {image.st_size} {image.st_mtime_ns}",
    )


def _boot(kernel: Path, program: str, deadline: float) -> Console:
    """Runs the kernel without a root file system until QEMU ends or time is up.  Leaves nothing behind."""
    ours, theirs = open_channels()
    config = MachineConfig(
        name="probe",
        accelerator=Accelerator.KVM,
        memory_mib=PROBE_MEMORY_MIB,
        cpus=1,
        boot=BootFiles(kernel, None, _PROBE_ARGUMENTS),
    )
    console = Console()
    try:
        channels = theirs.channels
        process = QemuProcess(qemu.command_line(config, channels, program), qemu.inherited(config, channels))
        try:
            theirs.close()
            said = ours.console
            while (left := deadline - time.monotonic()) > 0:
                ready, _, _ = select.select([process.pidfd, said], [], [], left)
                if said in ready and (data := os.read(said.fileno(), READ_SIZE)):
                    console.feed(data)
                elif process.pidfd in ready:
                    break
        finally:
            ended = process.close()
        if not console.text.strip():
            console.feed(ended.complaint.encode())
    finally:
        ours.close()
        theirs.close()
    return console
