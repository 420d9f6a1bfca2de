"""The container's processes, as ps(1) shows them; asked by a worker.

All processes of the VM but PID 1, the kernel's own threads and the worker that asks.  Files of /proc by hand: importing
psutil costs 42 million instructions, and it knows no more.
"""

import os
import time

from tether.faults import TetherError
from tether.link.late_messages import ProcessTable
from tether.link.record import Record
from tether.process.accounts import parse_passwd
from tether.process.user import PASSWD, read_database
from tether.requests.worker import Desk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PIECE = 65536
_KTHREADD = 2  # parent of the kernel's threads
_DAY = 86400
_PAGE = os.sysconf("SC_PAGESIZE")
_KIB = 1024
_MAX_ARGS = 4096  # bytes of a command line that are shown, as ps reads


class Facts(Record):
    """What is needed of a process: fields of /proc/PID/stat, its owner, its command line."""

    pid: int
    ppid: int
    uid: int
    user: str
    name: str
    args: str
    state: str
    tty: int
    session: int
    group: int
    foreground: int
    cpu_s: float
    age_s: float
    started: float  # seconds since 1970
    nice: int
    threads: int
    vsize: int
    rss: int


def pids() -> list[int]:
    """Processes of the container."""
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid not in (1, _KTHREADD, os.getpid())
            and not _is_kernels(pid)]


def threads_of(pid: int) -> int:
    """How many threads a process has; 0 if it has gone."""
    fields = _stat(pid)
    return int(fields[17]) if fields else 0


def table(desk: Desk, columns: tuple[str, ...]) -> ProcessTable:
    """The processes, with these columns in ps(1)'s names.  Raises TetherError for a column that is not known."""
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown or not columns:
        raise TetherError(", ".join(unknown) or "columns", "no such column of ps",
                          hint=f"known are {', '.join(COLUMNS)}")
    names = {user.uid: user.name.decode("utf-8", "replace")
             for user in reversed([*parse_passwd(read_database(desk.root, PASSWD))])}
    uptime = float(read_text("/proc/uptime").split()[0])
    memory = int(read_text("/proc/meminfo").split()[1]) * _KIB
    found = [one for one in (_facts(pid, names, uptime) for pid in sorted(pids())) if one is not None]
    return ProcessTable(titles=tuple(COLUMNS[name][0] for name in columns),
                        rows=tuple(tuple(COLUMNS[name][1](one, memory) for name in columns) for one in found))


def _facts(pid: int, names: dict[int, str], uptime: float) -> Facts | None:
    """None if the process has gone."""
    fields = _stat(pid)
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
        said = read_text(f"/proc/{pid}/cmdline")[:_MAX_ARGS]
    except (FileNotFoundError, ProcessLookupError):
        return None
    if not fields:
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    age = max(0.0, uptime - int(fields[19]) / ticks)
    args = said.rstrip("\0").replace("\0", " ")
    return Facts(
        pid=pid, ppid=int(fields[1]), uid=owner, user=names.get(owner, str(owner)), name=_name(pid), state=fields[0],
        args=args or f"[{_name(pid)}]", group=int(fields[2]), session=int(fields[3]), tty=int(fields[4]),
        foreground=int(fields[5]), cpu_s=(int(fields[11]) + int(fields[12])) / ticks, nice=int(fields[16]),
        threads=int(fields[17]), age_s=age, started=time.time() - age, vsize=int(fields[20]),
        rss=int(fields[21]) * _PAGE,
    )  # fmt: skip


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on (the name before it may hold anything); nothing if it has gone."""
    try:
        return read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _is_kernels(pid: int) -> bool:
    fields = _stat(pid)
    return not fields or int(fields[1]) == _KTHREADD


def _name(pid: int) -> str:
    try:
        return read_text(f"/proc/{pid}/comm").rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def read_text(path: str) -> str:
    """A file of /proc, whole; bytes that are no text are shown as such."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while piece := os.read(handle, _PIECE):
            data += piece
    finally:
        os.close(handle)
    return data.decode("utf-8", "backslashreplace")


# what a column shows


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole > 0 else 0.0


def _clock(seconds: float) -> str:
    """ps's TIME: [DD-]hh:mm:ss."""
    days, rest = divmod(int(seconds), _DAY)
    text = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{text}" if days else text


def _minutes(seconds: float) -> str:
    """BSD's TIME: minutes:seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _since(one: Facts) -> str:
    """STIME: the time of day in the first 24 hours, then month and day."""
    return time.strftime("%H:%M" if one.age_s < _DAY else "%b%d", time.gmtime(one.started))


def _terminal(one: Facts) -> str:
    """devpts has majors 136 to 143 (the kernel's admin-guide/devices.txt)."""
    if not one.tty:
        return "?"
    major, minor = os.major(one.tty), os.minor(one.tty)
    return f"pts/{minor + 256 * (major - 136)}" if 136 <= major <= 143 else f"{major}:{minor}"


def _state(one: Facts) -> str:
    """ps's STAT: nice, session leader, several threads, in the foreground of its terminal."""
    marks = "<" if one.nice < 0 else "N" if one.nice > 0 else ""
    marks += "s" if one.session == one.pid else ""
    marks += "l" if one.threads > 1 else ""
    marks += "+" if one.tty and one.foreground == one.group else ""
    return one.state + marks


COLUMNS: "dict[str, tuple[str, Callable[[Facts, int], str]]]" = {
    "uid": ("UID", lambda one, _memory: one.user),  # a name, as in ps -f
    "user": ("USER", lambda one, _memory: one.user),
    "pid": ("PID", lambda one, _memory: str(one.pid)),
    "ppid": ("PPID", lambda one, _memory: str(one.ppid)),
    "c": ("C", lambda one, _memory: str(int(_percent(one.cpu_s, one.age_s)))),
    "stime": ("STIME", lambda one, _memory: _since(one)),
    "start": ("START", lambda one, _memory: _since(one)),
    "tty": ("TTY", lambda one, _memory: _terminal(one)),
    "time": ("TIME", lambda one, _memory: _clock(one.cpu_s)),
    "bsdtime": ("TIME", lambda one, _memory: _minutes(one.cpu_s)),
    "cmd": ("CMD", lambda one, _memory: one.args),
    "args": ("COMMAND", lambda one, _memory: one.args),
    "comm": ("COMMAND", lambda one, _memory: one.name),
    "pcpu": ("%CPU", lambda one, _memory: f"{_percent(one.cpu_s, one.age_s):.1f}"),
    "pmem": ("%MEM", lambda one, memory: f"{_percent(one.rss, memory):.1f}"),
    "vsz": ("VSZ", lambda one, _memory: str(one.vsize // _KIB)),
    "rss": ("RSS", lambda one, _memory: str(one.rss // _KIB)),
    "stat": ("STAT", lambda one, _memory: _state(one)),
    "ni": ("NI", lambda one, _memory: str(one.nice)),
    "nlwp": ("NLWP", lambda one, _memory: str(one.threads)),
    "pgid": ("PGID", lambda one, _memory: str(one.group)),
    "sid": ("SID", lambda one, _memory: str(one.session)),
    "etimes": ("ELAPSED", lambda one, _memory: str(int(one.age_s))),
}
