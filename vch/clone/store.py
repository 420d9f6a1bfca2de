"""Where templates are kept, and how nobody ever gets a half of one.

    /dev/shm/vch-0/                       of one user, readable by nobody else
        1b2f.../  memory                  the guest's memory, sparse
                  state                   of its devices, as QEMU migrates it
                  template.json           what it is; written last; its time of change is that of the last clone
                  top                     only in one of an image: the container's disk as it was then
        .making-1b2f.../                  one that is being made: gets its name when it is whole
        .failed-77aa...                   one that could not be made of late
        .wanted-77aa...                   an image's, asked for once; it is made when it is asked for again
        .gone-412-88.../                  one that is being removed

A folder being made is locked (flock) by its maker for as long as that lives, so what a killed one left is known, and
removed by whoever comes next.  Each clone holds a shared lock on the memory: so it is known which templates are in use.
A template can be removed while it is: its files live until the last clone ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from imagebuild.locks import try_lock
from vch.clone.key import FORMAT
from vch.errors import HostError

MEMORY, STATE, TOP, RECORD = "memory", "state", "top", "template.json"
_MAKING, _GONE, _FAILED, WANTED = ".making-", ".gone-", ".failed-", ".wanted-"
FAILED_SECONDS = 600.0  # for so long nobody tries again to make a template that could not be made
MOST_KEPT = 8  # of those that nobody uses at the moment; each has about 55 MB
IDLE_SECONDS = 24 * 3600.0  # after which a template that nobody used is given back
SHARED_SECONDS = 2.0
_LOOK_AGAIN_SECONDS = 0.002
MOST_STATE = 64 << 20  # bytes; a state has 0.3 MB
_REMEDY = "make room there, or name another folder: VCH_TEMPLATES"


class Facts(NamedTuple):
    """What a template is: its key, what is in it, and how its files can be told from damaged ones."""

    key: str
    kernel: str
    memory_mib: int
    cpus: int
    network: bool
    accelerator: str
    made: float
    """Seconds since 1970."""
    memory_bytes: int
    memory_mtime_ns: int
    state_bytes: int
    state_crc: int
    drives: int = 0
    """Disks that it had when it was frozen: 0, or those of an image's root."""
    top_bytes: int = 0
    top_mtime_ns: int = 0
    format: int = FORMAT


class Template(NamedTuple):
    """An open template; its descriptors are its holder's to close."""

    facts: Facts
    memory: int
    state: int
    top: int = -1
    """What the container's disk begins with; -1 if the template is no image's."""

    def close(self) -> None:
        """Gives the descriptors back."""
        for descriptor in (self.memory, self.state, self.top):
            if descriptor >= 0:
                os.close(descriptor)


class Listed(NamedTuple):
    """A template as `vch template ls` shows it."""

    facts: Facts
    held_bytes: int
    """Memory of the host that it takes."""
    used: float
    """When it was last cloned, in seconds since 1970."""
    busy: bool
    """Clones of it run."""


class Store:
    """The templates of one user in one folder."""

    def __init__(self, parent: Path) -> None:
        """`parent` should be in memory (tmpfs); any file system will do."""
        self.folder = parent / f"vch-{os.geteuid()}"

    def open(self, key: str) -> Template | None:
        """The template, or None if there is none that is whole.  One that is damaged is removed."""
        folder = self.folder / key
        opened: list[int] = []
        try:
            for name in (RECORD, MEMORY, STATE):
                opened.append(os.open(folder / name, (os.O_RDWR if name == MEMORY else os.O_RDONLY) | os.O_CLOEXEC))
            record, memory, state = opened
            _share(memory)
            facts = _facts(record)
            top = -1
            if facts.drives:
                opened.append(top := os.open(folder / TOP, os.O_RDONLY | os.O_CLOEXEC))
            problem = _damage(facts, key, memory, state, top)
            if not problem and self._private():
                os.utime(record)
                os.close(record)
                return Template(facts, memory, state, top)
        except BlockingIOError:
            problem = ""
        except FileNotFoundError:
            problem = "incomplete" if folder.exists() else ""
        except (OSError, ValueError, TypeError) as error:
            problem = str(error)
        for descriptor in opened:
            os.close(descriptor)
        if problem:
            self.remove(key)
        return None

    @contextmanager
    def making(self, key: str) -> Iterator[Path | None]:
        """A folder to make a template in, which only this process has; None if somebody else is at it.

        `complete` puts it in its place.  Raises HostError if the store cannot be used.
        """
        self._prepare()
        self.collect()
        scratch = self.folder / f"{_MAKING}{key}"
        scratch.mkdir(mode=0o700, exist_ok=True)
        lock = try_lock(scratch, create=False)
        if lock is None:
            yield None
            return
        try:
            for left in scratch.iterdir():  # by one who was killed between our look and our lock
                left.unlink()
            yield scratch
        finally:
            _delete(scratch)  # it has another name if it is complete
            os.close(lock)

    def complete(self, scratch: Path, facts: Facts) -> None:
        """Gives a template that was made in `scratch` its place."""
        (scratch / RECORD).write_text(json.dumps(facts._asdict()), encoding="utf-8")
        self.remove(facts.key)
        for note in (_FAILED, WANTED):
            (self.folder / f"{note}{facts.key}").unlink(missing_ok=True)
        scratch.rename(self.folder / facts.key)

    def failed(self, key: str) -> None:
        """It could not be made: machines need not try again for a while."""
        with suppress(OSError):
            (self.folder / f"{_FAILED}{key}").touch()

    def want(self, key: str) -> bool:
        """Notes that it would have been of use; whether it would have been before."""
        note = self.folder / f"{WANTED}{key}"
        known = note.exists()
        with suppress(OSError):  # no folder yet: then there is no template either
            note.touch(mode=0o600)
        return known

    def has_failed(self, key: str) -> bool:
        """Whether it could not be made of late."""
        try:
            return time.time() - (self.folder / f"{_FAILED}{key}").stat().st_mtime < FAILED_SECONDS
        except FileNotFoundError:
            return False

    def remove(self, key: str) -> bool:
        """Removes a template; clones of it that run go on.  False if there is none."""
        gone = self.folder / f"{_GONE}{os.getpid()}-{time.monotonic_ns()}"
        try:
            (self.folder / key).rename(gone)
        except FileNotFoundError:
            return False
        _delete(gone)
        return True

    def forget(self) -> None:
        """Forgets which could not be made, and which would have been of use."""
        for note in (_FAILED, WANTED):
            for entry in self.folder.glob(f"{note}*"):
                entry.unlink(missing_ok=True)

    def collect(self) -> None:
        """Removes what killed processes left, and templates that nobody has used for long, or that are too many."""
        for place, one in enumerate(self.list()):
            if not one.busy and (place >= MOST_KEPT or time.time() - one.used > IDLE_SECONDS):
                self.remove(one.facts.key)
        with suppress(FileNotFoundError):
            for entry in list(os.scandir(self.folder)):
                if entry.name.startswith(_GONE):
                    _delete(Path(entry.path))
                elif entry.name.startswith(_MAKING):
                    _remove_abandoned(Path(entry.path))
                elif entry.name.startswith(_FAILED):
                    if not self.has_failed(entry.name.removeprefix(_FAILED)):
                        Path(entry.path).unlink(missing_ok=True)
                elif entry.name.startswith(WANTED):
                    if time.time() - entry.stat().st_mtime > IDLE_SECONDS:
                        Path(entry.path).unlink(missing_ok=True)
                elif not entry.name.startswith(".") and not Path(entry.path, RECORD).exists():
                    self.remove(entry.name)

    def list(self) -> list[Listed]:
        """All that are whole, the last used first."""
        found = []
        with suppress(FileNotFoundError):
            for folder in self.folder.iterdir():
                with suppress(OSError, ValueError, TypeError):
                    if not folder.name.startswith("."):
                        found.append(_listed(folder))
        return sorted(found, key=lambda one: one.used, reverse=True)

    def room(self) -> int:
        """Bytes that the file system still takes.  Raises HostError."""
        self._prepare()
        free = os.statvfs(self.folder)
        return free.f_bavail * free.f_frsize

    def _prepare(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise HostError("keep template", str(self.folder), error.strerror or str(error), _REMEDY) from error
        if not self._private():
            cause = "it is not ours, or others may enter it"
            raise HostError("keep template", str(self.folder), cause, "remove it, or set VCH_TEMPLATES")

    def _private(self) -> bool:
        """Whoever can write a template runs code in every machine."""
        found = os.lstat(self.folder)
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def describe_files(memory: int, state: int, top: int = -1) -> dict[str, int]:
    """What `Facts` says of the files."""
    data = os.pread(state, MOST_STATE, 0)
    found = os.fstat(memory)
    facts = {
        "memory_bytes": found.st_size,
        "memory_mtime_ns": found.st_mtime_ns,
        "state_bytes": len(data),
        "state_crc": crc32(data),
    }
    if top >= 0:
        found = os.fstat(top)
        facts.update(top_bytes=found.st_size, top_mtime_ns=found.st_mtime_ns)
    return facts


def _facts(record: int) -> Facts:
    plain = json.loads(os.pread(record, 65536, 0))
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise ValueError("of another format")
    return Facts(**plain)


def _damage(facts: Facts, key: str, memory: int, state: int, top: int) -> str:
    """What is wrong with the files; "" if nothing is."""
    if facts.key != key:
        return "of another machine"
    for name, value in describe_files(memory, state, top).items():
        if getattr(facts, name) != value:
            return f"{name} is {value} instead of {getattr(facts, name)}"
    return ""


def _share(memory: int) -> None:
    """Says that somebody uses it.  Who looks whether anybody does (`_busy`) has it for a moment, and that is no reason
    to make it once more.  Raises BlockingIOError if the moment lasts."""
    deadline = time.monotonic() + SHARED_SECONDS
    while True:
        try:
            fcntl.flock(memory, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_AGAIN_SECONDS)


def _busy(folder: Path) -> bool:
    descriptor = os.open(folder / MEMORY, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _delete(folder: Path) -> None:
    from shutil import rmtree  # late: its module imports every compressor that there is

    rmtree(folder, ignore_errors=True)


def _remove_abandoned(scratch: Path) -> None:
    """Removes a folder whose maker is gone."""
    lock = try_lock(scratch, create=False)
    if lock is not None:
        _delete(scratch)
        os.close(lock)


def _listed(folder: Path) -> Listed:
    record = os.open(folder / RECORD, os.O_RDONLY | os.O_CLOEXEC)
    try:
        facts, used = _facts(record), os.fstat(record).st_mtime
    finally:
        os.close(record)
    held = sum(os.stat(folder / name).st_blocks * 512 for name in (MEMORY, STATE, TOP)[: 3 if facts.drives else 2])
    return Listed(facts, held, used, _busy(folder))
