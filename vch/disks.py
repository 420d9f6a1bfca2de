"""Writable disks of a machine: the top of its root file system, and volumes.  All are ext4 in a VMDK.

A disk that ends with its machine is a file without a name (O_TMPFILE), described by a VMDK descriptor that exists in
memory only (memfd); QEMU gets both as descriptors.  Nothing has to be removed afterwards, so nothing can be forgotten.

A named volume is a folder with two files, which any VMware tool can open:

    volumes/NAME/volume.vmdk        the descriptor
    volumes/NAME/volume-flat.vmdk   the ext4 file system, sparse
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from imagebuild.disk import vmdk
from vch.errors import HostError
from vch.locks import NameLock
from vch.qemu.config import Drive, MachineConfig

SECTOR = 512
MIB = 1 << 20
RESERVE = 32 * MIB  # of the host's free space is left to others
LEAST_DISK = 16 * MIB  # with less a container hardly starts
STATE = "state"  # the folder in it for locks and verdicts (vch/settings.py)
DESCRIPTOR, CONTENT = "volume.vmdk", "volume-flat.vmdk"
NO_SPACE = "make room, or set VCH_HOME to a folder with more"


class DiskSet:
    """The writable disks of one machine, with all that is held open or locked for them until `close`."""

    def __init__(self, home: Path) -> None:
        """`home` is the folder of all state: named volumes are in it, and unnamed files on its file system."""
        self.home = home
        self.drives: list[Drive] = []
        self.fd_sets: dict[int, int] = {}
        self._held = ExitStack()

    def add_unnamed(self, serial: str, size: int, *, blank: bool = False) -> None:
        """A disk of `size` bytes that ends with the machine; smaller where the host has less room.

        So a container that fills it is told "no space left" by its own file system, as it should be.  A `blank` one
        has none until `format_blank`.
        """
        content = self._keep(unnamed_file(self.home))
        size = min(size, _room(content, str(self.home)))
        self.add_file(serial, content, size, blank=blank)

    def add_file(self, serial: str, content: int, size: int, *, blank: bool = False) -> None:
        """A disk of `size` bytes in an open file of the caller's, as empty as the unnamed ones."""
        if blank:
            os.ftruncate(content, size)
        else:
            format_empty(content, size, str(self.home))
        described = self._keep(os.memfd_create(f"vmdk-{serial}", os.MFD_CLOEXEC))
        number = self._fd_set(content)
        os.write(described, vmdk.flat(f"/dev/fdset/{number}", size // SECTOR).encode())
        path = f"/dev/fdset/{self._fd_set(described)}"
        self.drives.append(Drive(serial, path, volatile=True, content=number, blank=blank))

    def add_volume(self, serial: str, name: str, size: int, read_only: bool) -> None:
        """The volume `name`, made with `size` bytes if there is none.  Raises HostError if another machine has it."""
        self._held.enter_context(NameLock(self.home / STATE, "volume", name))
        folder = self.home / "volumes" / name
        if not (folder / DESCRIPTOR).exists():
            make_volume(folder, size)
        self.drives.append(Drive(serial, str(folder / DESCRIPTOR), read_only))

    def add_image(self, serial: str, descriptor: Path) -> None:
        """The disk of the image's layers."""
        self.drives.append(Drive(serial, str(descriptor), read_only=True))

    def close(self) -> None:
        """Gives everything back, once QEMU has ended."""
        self._held.close()

    def _keep(self, descriptor: int) -> int:
        self._held.callback(os.close, descriptor)
        return descriptor

    def _fd_set(self, descriptor: int) -> int:
        number = len(self.fd_sets) + 1
        self.fd_sets[number] = descriptor
        return number


def unnamed_file(folder: Path) -> int:
    """A file without a name on the file system of `folder`, or in memory where that one cannot have such."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):  # open(2), O_TMPFILE: "not supported here"
            raise HostError("make disk", str(folder), error.strerror or str(error), NO_SPACE) from error
    import tempfile

    with tempfile.NamedTemporaryFile(dir=folder, prefix=".disk-") as file:  # has a name for an instant only
        return os.dup(file.fileno())


def _room(descriptor: int, subject: str) -> int:
    """Bytes that the file system of an open file still takes, less a reserve for others; whole MiB."""
    free = os.fstatvfs(descriptor)
    room = (free.f_bavail * free.f_frsize - RESERVE) // MIB * MIB
    if room < LEAST_DISK:
        raise HostError("make disk", subject, f"only {free.f_bavail * free.f_frsize // MIB} MiB are free", NO_SPACE)
    return room


def make_volume(folder: Path, size: int) -> None:
    """An empty named volume, whole or not at all.  The caller has locked the name."""
    import shutil
    import tempfile

    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        content = os.open(fresh / CONTENT, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _format(content, size, str(folder), journal=True)
            os.fsync(content)
        finally:
            os.close(content)
        (fresh / DESCRIPTOR).write_text(vmdk.flat(CONTENT, size // SECTOR))
        fresh.rename(folder)
    except OSError as error:
        raise HostError("make volume", str(folder), error.strerror or str(error), NO_SPACE) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def format_empty(descriptor: int, size: int, subject: str) -> None:
    """Makes an open file the content of a disk that ends with its machine, whatever was in it.  Raises HostError."""
    _format(descriptor, size, subject, journal=False)  # whatever ends the machine ends the disk too


def format_blank(config: MachineConfig, drives: Sequence[Drive]) -> None:
    """Makes the file systems of those of a machine's drives that have none yet.  Raises HostError."""
    for drive in drives:
        if drive.blank:
            content = config.fd_sets[drive.content]
            format_empty(content, os.fstat(content).st_size, config.name)


def _format(descriptor: int, size: int, subject: str, *, journal: bool) -> None:
    from imagebuild.disk.ext4 import make_ext4

    try:
        make_ext4(descriptor, size, "", os.urandom(16), journal=journal)
    except OSError as error:
        raise HostError("make disk", subject, error.strerror or str(error), NO_SPACE) from error
