"""Control messages that most machines never see (docs/protocol.md, "Control messages").

They are as much part of the protocol as those of tether.link.messages, but both ends import this module at the first
of them only: each record costs a cold boot 45,000 instructions.  `tether.requests.late` answers the requests.

Requests that move bytes name a session number of their own, which no exec has; its streams carry them: the standard
output what comes out of the guest, the standard input what goes in.
"""

from tether.link.messages import Done, Exited, Signalled
from tether.link.record import Record
from tether.spec import Host, Interface, Volume

ADDED, CHANGED, DELETED = "A", "C", "D"  # kinds of changes that Diff tells, as Docker's client shows them


class Stat(Record):
    """What is at this path of the container?  A symbolic link at its end is not followed, unless a "/" follows it."""

    path: bytes


class FileStat(Record):
    """Answer to Stat: as lstat(2) has it.

    `name` is the last part of the path, `link` what a symbolic link says, `target` the path in the container to which
    it leads in the end (also where nothing is there).
    """

    name: bytes
    mode: int  # type and permissions
    size: int
    mtime_ns: int
    uid: int
    gid: int
    link: bytes = b""
    target: bytes = b""


class AddInterface(Record):
    """Wait for a NIC with this MAC address, which may not be plugged in yet, and bring it up."""

    interface: Interface


class InterfaceUp(Record):
    """Answer to AddInterface: every address is usable.  `name` is the kernel's, `addresses` those of DHCP too."""

    name: str
    addresses: tuple[str, ...] = ()


class RemoveInterface(Record):
    """Give its lease back and switch it off: it will be unplugged."""

    mac: str


class SetNames(Record):
    """Change what hosts and resolv.conf say, to this: everything that is meant to stay has to be named again."""

    aliases: tuple[str, ...] = ()
    hosts: tuple[Host, ...] = ()
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    resolver_options: tuple[str, ...] = ()


class Announce(Record):
    """Tell the neighbours on every link which addresses are here: after the VM has moved, or was cloned."""


class Restarting(Record):
    """The primary process has ended as `state` says, and is started again, for the `count`th time, in `after_ms`."""

    state: Exited | Signalled
    count: int
    after_ms: int
    oom_killed: bool = False


class Probe(Record):
    """One run of the health check: its exit code, -1 if it took too long or could not be run; times of CLOCK_REALTIME.

    `output` is the beginning of what it wrote, both streams.
    """

    start_ns: int
    end_ns: int
    code: int
    output: bytes = b""


class Health(Record):
    """The health check has been run, or has begun: `status` is one of HEALTH, `log` its last runs, oldest first."""

    status: str
    failures: int = 0
    log: tuple[Probe, ...] = ()


STARTING, HEALTHY, UNHEALTHY = HEALTH = ("starting", "healthy", "unhealthy")  # Docker's words


class Get(Record):
    """Send the tar archive of what is at `path` on the output stream of `session`.  Answered when all is sent."""

    session: int
    path: bytes


class Put(Record):
    """Unpack the tar archive that comes on the input stream of `session` into the folder `path`.

    `keep_kinds`: do not put a folder where something else is, nor the other way round (Docker's noOverwriteDirNonDir).
    `owner`: who gets everything, Docker's USER string as for a process; "": whom the archive says.
    """

    session: int
    path: bytes
    keep_kinds: bool = False
    owner: str = ""


class Unpacked(Record):
    """Answer to Put.  `attributes_lost`: extended attributes that the file system there cannot keep."""

    members: int
    attributes_lost: int = 0


class Diff(Record):
    """Send what has changed against the image on the output stream of `session`.

    Each change is "A" (added), "C" (changed) or "D" (deleted), the path, and a null byte; in no order.
    """

    session: int


class Freeze(Record):
    """Write everything out and change nothing on any disk until Thaw; after `timeout_ms` the guest thaws by itself."""

    timeout_ms: int = 10000


class Thaw(Record):
    """Go on.  A Fault if the disks were not frozen any more: what was copied meanwhile may not be consistent."""


class SetClock(Record):
    """It is `realtime_ns` (CLOCK_REALTIME) now.  A small difference is slewed away, a large one is a step."""

    realtime_ns: int


class ClockSet(Record):
    """Answer to SetClock: by how much the guest's clock was behind (negative: ahead)."""

    behind_ns: int
    stepped: bool = False


class AttachVolume(Record):
    """Wait for a disk, which may not be plugged in yet, and mount it as a volume in the running container."""

    volume: Volume


class DetachVolume(Record):
    """Unmount the volume at `path`: its disk will be unplugged.  A Fault while something uses it."""

    path: bytes


class UseHardware(Record):
    """Processors or memory are being plugged in: wait for them and use them.

    `cpus` is how many there are to be in all, or 0; `added_mib` is what has been added to the `boot_mib` that the VM
    began with.
    """

    cpus: int = 0
    boot_mib: int = 0
    added_mib: int = 0


class HardwareInUse(Record):
    """Answer to UseHardware: processors that run, memory that the kernel manages."""

    cpus: int
    memory_kib: int


class Top(Record):
    """Which processes are there?  `columns` are those of ps(1), by the names that its -o takes."""

    columns: tuple[str, ...]


class ProcessTable(Record):
    """Answer to Top: titles and rows, as `docker top` shows them."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Stats(Record):
    """What has the container used?"""


class CpuUse(Record):
    """CPU time since the kernel started: of the container, and of all its processors together (busy and idle)."""

    total_ns: int
    user_ns: int
    kernel_ns: int
    system_ns: int
    online: int


class MemoryUse(Record):
    """Bytes.  `usage` includes caches; `detail` has the names of cgroup v2's memory.stat, and counts of events."""

    usage: int
    limit: int
    available: int
    detail: dict[str, int]


class BlockUse(Record):
    """What a disk has done."""

    name: str
    major: int
    minor: int
    reads: int
    read_bytes: int
    writes: int
    written_bytes: int


class InterfaceUse(Record):
    """What a network interface has done."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


class Statistics(Record):
    """Answer to Stats, as of `time_ns` (CLOCK_REALTIME).  `pids` counts threads, as Docker's does."""

    time_ns: int
    cpu: CpuUse
    memory: MemoryUse
    blocks: tuple[BlockUse, ...] = ()
    networks: tuple[InterfaceUse, ...] = ()
    pids: int = 0
    pids_limit: int = 0


class WatchMemory(Record):
    """From now on tell OutOfMemory and MemoryShort."""


class OutOfMemory(Record):
    """The OOM killer has taken a process of the container; `rss`: bytes of memory that it had of its own."""

    pid: int
    name: str
    rss: int = 0


class MemoryShort(Record):
    """Little memory is left, in bytes; told once, and again after there was enough meanwhile."""

    available: int
    limit: int


LEVELS = ("debug", "info", "warning", "error")


class SendLog(Record):
    """From now on send tether's own log on stream 1, from this one of LEVELS on."""

    level: str = "info"


class LogSent(Record):
    """Answer to SendLog: how many bytes the log has had so far."""

    bytes: int


_ANSWERS: dict[type[Record], type[Record]] = {
    Stat: FileStat,
    Get: Done,
    Put: Unpacked,
    Diff: Done,
    Top: ProcessTable,
    Stats: Statistics,
    WatchMemory: Done,
    SendLog: LogSent,
    AddInterface: InterfaceUp,
    RemoveInterface: Done,
    SetNames: Done,
    Announce: Done,
    Freeze: Done,
    Thaw: Done,
    SetClock: ClockSet,
    AttachVolume: Done,
    DetachVolume: Done,
    UseHardware: HardwareInUse,
}
LATE_REQUESTS: dict[str, type[Record]] = {cls.__name__: cls for cls in _ANSWERS}
LATE_ANSWERS: dict[str, type[Record]] = {cls.__name__: answer for cls, answer in _ANSWERS.items()}
LATE_EVENTS: dict[str, type[Record]] = {cls.__name__: cls for cls in (Restarting, Health, OutOfMemory, MemoryShort)}
