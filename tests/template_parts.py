"""What tests of templates share, as long as no machine runs: a machine to be, and templates that nobody made."""

from __future__ import annotations

import os
from pathlib import Path

from vch.clone.store import MEMORY, STATE, TOP, Facts, Store, describe_files
from vch.qemu.config import Accelerator, BootFiles, Drive, MachineConfig, UserNetwork

KEY = "ab" * 16


def a_machine(folder: Path) -> MachineConfig:
    """A machine of 256 MiB whose files, "qemu" too, are in `folder`."""
    for name in ("kernel", "initramfs", "qemu"):
        (folder / name).write_bytes(name.encode())
    boot = BootFiles(folder / "kernel", folder / "initramfs", ("quiet", "panic=-1"))
    return MachineConfig("web", Accelerator.TCG, 256, 1, boot, (Drive("image", "/i.vmdk", True),),
                         UserNetwork("02:01:02:03:04:05"))


def put(
    store: Store, key: str = KEY, memory: bytes = b"m" * 4096, state: bytes = b"state", top: bytes = b""
) -> Path:
    """A template of these files; with a `top` it is an image's."""
    with store.making(key) as scratch:
        assert scratch is not None
        (scratch / MEMORY).write_bytes(memory)
        (scratch / STATE).write_bytes(state)
        if top:
            (scratch / TOP).write_bytes(top)
        opened = [os.open(scratch / name, os.O_RDONLY) for name in (MEMORY, STATE, TOP)[: 3 if top else 2]]
        facts = Facts(key, "pico", 256, 1, True, "tcg", 0.0, drives=2 if top else 0, **describe_files(*opened))
        for descriptor in opened:
            os.close(descriptor)
        store.complete(scratch, facts)
    return store.folder / key
