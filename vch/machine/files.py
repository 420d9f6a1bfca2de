"""Files of a running machine: what is there, out of it, into it, what has changed.  Layered on vch.machine.Machine.

Archives are made and unpacked here by the code that does it in the guest (tether.archive), in the calling thread, while
the I/O thread moves the bytes: a pipe is between them, so neither waits for the other's disk.  An archive from a guest
is not trusted: it is unpacked below the given folder and nowhere else, without owners, devices and set-id bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tether.archive.entry import ArchiveError
from tether.archive.pack import Packer
from tether.archive.tarread import TarReader
from tether.archive.unpack import Policy, Unpacker
from tether.link.late_messages import ADDED, CHANGED, DELETED, Diff, FileStat, Get, Put, Stat, Unpacked
from vch.errors import GuestError, HostError, MachineError
from vch.machine.sinks import Collector, FdSink

if TYPE_CHECKING:
    from tether.link.record import Record
    from vch.machine.machine import Machine
    from vch.machine.transfer import Transfer

STAT_SECONDS = 60.0
MOST_CHANGES = 256 << 20  # bytes of a list of changes: some millions of paths

AnyPath = str | bytes | os.PathLike[str]


class ChangeKind(Enum):
    """What happened to a path, with the letter that `docker diff` shows."""

    ADDED = ADDED
    CHANGED = CHANGED
    DELETED = DELETED


@dataclass(frozen=True, order=True)
class Change:
    """One difference between a container and its image."""

    path: bytes
    kind: ChangeKind = ChangeKind.CHANGED

    def __str__(self) -> str:
        return f"{self.kind.value} {os.fsdecode(self.path)}"


def stat(machine: Machine, path: AnyPath) -> FileStat:
    """What is at `path` of the container; a link at its end is not followed.  Raises GuestError."""
    return cast("FileStat", machine.tell(Stat(path=os.fsencode(path))).result(STAT_SECONDS))


def diff(machine: Machine) -> list[Change]:
    """What has changed against the image, by path.  Raises GuestError, MachineError."""
    collected = Collector(MOST_CHANGES)
    _finish(machine.transfer(lambda number: Diff(session=number), sink=collected))
    if collected.truncated:
        raise MachineError("diff", "container", f"more than {MOST_CHANGES >> 20} MiB of changes")
    rows = bytes(collected.content).split(b"\0")[:-1]
    return sorted((Change(row[1:], ChangeKind(chr(row[0]))) for row in rows), key=lambda change: change.path)


def get_archive(machine: Machine, path: AnyPath, sink: int) -> None:
    """Writes the tar archive of `path` to the file descriptor `sink`.  Raises GuestError, OSError."""
    reading, transfer = _get(machine, path)
    try:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            while piece := pipe.read(1 << 20):
                view = memoryview(piece)
                while view:
                    view = view[os.write(sink, view) :]
    finally:
        failure = _wait(transfer)
    if failure is not None:
        raise failure


def get(machine: Machine, path: AnyPath, local: AnyPath) -> None:
    """Copies the file or folder `path` into the folder `local`, made if missing.  Raises GuestError, HostError."""
    folder = Path(os.fsdecode(local))
    reading, transfer = _get(machine, path)
    failure: BaseException | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            Unpacker(TarReader(reading), top, Policy(plain=True)).run()
        finally:
            os.close(top)
    except (ArchiveError, OSError) as error:
        failure = _host_error("get", error, folder)
    finally:
        os.close(reading)
        lost = _wait(transfer)
    if lost is not None and not _is_echo(lost, failure):
        raise lost
    if failure is not None:
        raise failure


def put_archive(machine: Machine, source: int, path: AnyPath, **options: bool | str) -> Unpacked:
    """Unpacks the tar archive that the file descriptor `source` gives into the folder `path`.  See Put for options."""

    def copy(sink: int) -> None:
        while piece := os.read(source, 1 << 20):
            view = memoryview(piece)
            while view:
                view = view[os.write(sink, view) :]

    return _put(machine, path, copy, options)


def put(machine: Machine, local: AnyPath, path: AnyPath, *, owner: str = "0:0") -> Unpacked:
    """Copies the local file or folder into the folder `path`, under its own name; "local/." copies what is in it.

    Raises GuestError, HostError.
    """
    text = os.fsdecode(local)
    name = os.path.basename(text.rstrip("/")) or "."
    if name in (".", ".."):
        folder, leaf, member = text, ".", b"."
    else:
        folder, leaf, member = os.path.dirname(text.rstrip("/")) or ".", name, os.fsencode(name)

    def pack(sink: int) -> None:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            packer = Packer(sink)
            packer.add(opened, leaf, member)
            packer.finish()
        finally:
            os.close(opened)

    return _put(machine, path, pack, {"owner": owner})


def _put(machine: Machine, path: AnyPath, write: Callable[[int], None], options: dict[str, bool | str]) -> Unpacked:
    reading, writing = os.pipe()
    keep_kinds, owner = bool(options.get("keep_kinds", False)), str(options.get("owner", ""))
    transfer = machine.transfer(
        lambda number: Put(session=number, path=os.fsencode(path), keep_kinds=keep_kinds, owner=owner), source=reading
    )
    try:
        write(writing)
    except BrokenPipeError:
        pass  # the guest wants no more: its answer says why
    except OSError as error:
        transfer.abort()
        with suppress(MachineError):
            transfer.answer.result(None)
        raise _host_error("put", error, Path()) from error
    finally:
        os.close(writing)
    return cast("Unpacked", transfer.answer.result(None))


def _get(machine: Machine, path: AnyPath) -> tuple[int, Transfer]:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    sink = FdSink(writing, polled=True)
    return reading, machine.transfer(lambda number: Get(session=number, path=os.fsencode(path)), sink=sink)


def _finish(transfer: Transfer) -> Record:
    """Waits for all of it."""
    answer = transfer.answer.result(None)
    transfer.flushed.result(None)
    return answer


def _wait(transfer: Transfer) -> MachineError | None:
    """How it failed, if it did."""
    try:
        transfer.answer.result(None)
    except MachineError as error:
        return error
    return None


def _is_echo(lost: MachineError, failure: BaseException | None) -> bool:
    """The guest only says that we did not want any more."""
    return failure is not None and isinstance(lost, GuestError) and lost.fault.errno == "ECANCELED"


def _host_error(step: str, error: ArchiveError | OSError, folder: Path) -> HostError:
    if isinstance(error, ArchiveError):
        return HostError(step, error.what, error.text, error.hint)
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(folder)
    return HostError(step, name, error.strerror or str(error))
