"""The wire as it was published: each frame, each opening and each message, byte for byte.

The examples are in frozen_link/generation-N.txt, a name and hexadecimal digits a line.  Where one differs, either the
change was not meant, or it is meant: then docs/protocol.md, "Generations", says what else it needs, and

    .venv/bin/python tests/unit/test_link_frozen.py

writes the examples of the present generation anew, for the diff to show what changed.
"""

from pathlib import Path

import pytest

from tether.link import cbor
from tether.link.control import ANSWER, EVENT, REQUEST, read_message, write_message
from tether.link.frame import (
    ABORT,
    ACK,
    BYE,
    CLOSED,
    DATA,
    FIN,
    GENERATION,
    HELLO,
    LIFE_SHIFT,
    NAK,
    OLDEST_GENERATION,
    RESUME,
    STOP,
    Decoder,
    build,
)
from tether.link.hello import APPLIANCE, TETHER, Hello, Resume, hello_of, pack, read_hello, read_resume
from tether.link.late_messages import (
    LATE_ANSWERS,
    LATE_EVENTS,
    LATE_REQUESTS,
    AddInterface,
    Announce,
    AttachVolume,
    BlockUse,
    ClockSet,
    CpuUse,
    DetachVolume,
    Diff,
    FileStat,
    Freeze,
    Get,
    HardwareInUse,
    Health,
    InterfaceUp,
    InterfaceUse,
    LogSent,
    MemoryShort,
    MemoryUse,
    OutOfMemory,
    Probe,
    ProcessTable,
    Put,
    RemoveInterface,
    Restarting,
    SendLog,
    SetClock,
    SetNames,
    Stat,
    Statistics,
    Stats,
    Thaw,
    Top,
    Unpacked,
    UseHardware,
    WatchMemory,
)
from tether.link.limits import Limits
from tether.link.messages import (
    ANSWERS,
    EVENTS,
    REQUESTS,
    Done,
    Ended,
    Exec,
    Exited,
    Fault,
    Goodbye,
    Phase,
    Ping,
    Pong,
    Ready,
    Resize,
    Shutdown,
    Signal,
    Signalled,
    Start,
    Started,
)
from tether.link.record import Record
from tether.spec import (
    Disk,
    HealthCheck,
    Host,
    Identity,
    Interface,
    Layer,
    Limit,
    Network,
    Process,
    Restart,
    Root,
    Route,
    Share,
    Spec,
    Sysctl,
    Terminal,
    Tmpfs,
    Verity,
    Volume,
)

FROZEN = Path(__file__).parent / "frozen_link"
KEY = 0x0A0B0C0D

FAULT = Fault(step="execute", object="/bin/nope", text="No such file or directory", errno="ENOENT", hint="look again")
PROCESS = Process(
    args=(b"/bin/sh", b"-c", b"echo \xff"),
    env=(b"PATH=/bin",),
    cwd=b"/srv",
    user="www-data:33",
    terminal=Terminal(rows=50, columns=132),
    stdin=True,
    groups=("audio", "33"),
    limits=(Limit(name="nofile", soft=1024, hard=-1),),
    capabilities=("CHOWN", "NET_BIND_SERVICE"),
    ambient=("NET_BIND_SERVICE",),
    no_new_privileges=True,
    oom_score_adj=-500,
    umask=0o077,
    nice=5,
    idle=True,
)
SPEC = Spec(
    id="ab" * 32,
    identity=Identity(entropy=bytes(range(32)), clock_ns=1_700_000_000_123_456_789),
    root=Root(
        layers=(Layer(disk=Disk(serial="image", partition=2)), Layer(disk=Disk(scsi="0:0:1:0"), filesystem="ext4"),
                Layer(disk=Disk(serial="sealed"), verity=Verity(root_hash="ab" * 32, data_size=8192))),
        writable=Disk(serial="top"),
        read_only=True,
        whole=Disk(serial="all"),
    ),
    network=Network(
        hostname="web",
        domainname="example.org",
        interfaces=(
            Interface(mac="02:00:00:00:00:01", addresses=("10.0.2.15/24",), gateway4="10.0.2.2", mtu=1400),
            Interface(mac="02:00:00:00:00:02", addresses=("fec0::15/64",), gateway6="fec0::2", check_duplicates=True),
            Interface(
                mac="02:00:00:00:00:03",
                routes=(Route(destination="10.1.0.0/16", gateway="10.0.0.1", metric=5, source="10.0.0.9"),),
                dhcp=True,
                found_as="02:00:00:00:00:00",
                announce=False,
                firewall="published",
                published=("80/tcp",),
                peers=("10.0.0.0/8",),
            ),
        ),
        nameservers=("10.0.2.3",),
        search=("example.org",),
        resolver_options=("ndots:1",),
        hosts=(Host(address="10.0.2.2", names=("gateway",)),),
        aliases=("www",),
    ),
    process=PROCESS,
    volumes=(Volume(disk=Disk(file="vol.img"), path=b"/data", read_only=True, no_copy=True),),
    tmpfs=(Tmpfs(path=b"/tmp", options="size=64m"),),
    stop_signal=3,
    sysctls=(Sysctl(key="net.core.somaxconn", value="77"),),
    own_pids=True,
    health=HealthCheck(
        args=(b"true",), interval_ms=1000, timeout_ms=2000, start_period_ms=3000, start_interval_ms=400, retries=5
    ),
    restart=Restart(always=True, retries=6),
    shares=(
        Share(
            path=b"/nfs", source="10.0.2.2:/e", kind="nfs4", options="addr=10.0.2.2", read_only=True, timeout_ms=9000
        ),
    ),
)
NIC = Interface(mac="02:00:00:00:00:04", dhcp=True)
NAMES = SetNames(
    aliases=("www",),
    hosts=(Host(address="10.0.2.2", names=("gateway", "gw")),),
    nameservers=("10.0.2.3",),
    search=("example.org",),
    resolver_options=("ndots:1",),
)
PROBE = Probe(start_ns=1_700_000_000_000_000_000, end_ns=1_700_000_001_000_000_000, code=-1, output=b"late")
STATISTICS = Statistics(
    time_ns=1_700_000_000_000_000_000,
    cpu=CpuUse(total_ns=1, user_ns=2, kernel_ns=3, system_ns=4, online=5),
    memory=MemoryUse(usage=1, limit=2, available=3, detail={"anon": 4}),
    blocks=(BlockUse(name="sda", major=8, minor=0, reads=1, read_bytes=2, writes=3, written_bytes=4),),
    networks=(
        InterfaceUse(name="eth0", rx_bytes=1, rx_packets=2, rx_errors=3, rx_dropped=4, tx_bytes=5, tx_packets=6,
                     tx_errors=7, tx_dropped=8),
    ),
    pids=9,
    pids_limit=10,
)
PHASES = (Phase(name="mount", start_us=1000, took_us=250),)

MESSAGES: list[tuple[int, int, Record]] = [
    (REQUEST, 1, Start(spec=SPEC)),
    (REQUEST, 2, Exec(session=1, process=PROCESS, detached=True)),
    (REQUEST, 3, Signal(session=0, number=15, group=True)),
    (REQUEST, 4, Resize(session=0, rows=24, columns=80)),
    (REQUEST, 5, Shutdown(grace_ms=10000, reason="stop")),
    (REQUEST, 6, Ping()),
    (REQUEST, 7, Stat(path=b"/etc/\xff")),
    (REQUEST, 8, AddInterface(interface=NIC)),
    (REQUEST, 9, RemoveInterface(mac=NIC.mac)),
    (REQUEST, 10, NAMES),
    (REQUEST, 11, Announce()),
    (REQUEST, 12, Get(session=5, path=b"/etc")),
    (REQUEST, 13, Put(session=6, path=b"/srv", keep_kinds=True, owner="www-data:33")),
    (REQUEST, 14, Diff(session=7)),
    (REQUEST, 22, Freeze(timeout_ms=60000)),
    (REQUEST, 23, Thaw()),
    (REQUEST, 24, SetClock(realtime_ns=1_700_000_000_000_000_000)),
    (REQUEST, 25, AttachVolume(volume=Volume(disk=Disk(label="more"), path=b"/more"))),
    (REQUEST, 26, DetachVolume(path=b"/more")),
    (REQUEST, 27, UseHardware(cpus=2, boot_mib=256, added_mib=128)),
    (REQUEST, 15, Top(columns=("pid", "cmd"))),
    (REQUEST, 16, Stats()),
    (REQUEST, 17, WatchMemory()),
    (REQUEST, 18, SendLog(level="debug")),
    (ANSWER, 1, Started(pid=42, phases=PHASES, resident_kib=9000)),
    (ANSWER, 2, FAULT),
    (ANSWER, 3, Done()),
    (ANSWER, 6, Pong(monotonic_ns=123456789, realtime_ns=1_700_000_000_000_000_000)),
    (ANSWER, 7, FileStat(name=b"\xff", mode=0o120777, size=3, mtime_ns=-1, uid=1, gid=2, link=b"../a", target=b"/a")),
    (ANSWER, 24, ClockSet(behind_ns=-5, stepped=True)),
    (ANSWER, 27, HardwareInUse(cpus=2, memory_kib=374444)),
    (ANSWER, 8, InterfaceUp(name="eth1", addresses=("10.0.0.9/24",))),
    (ANSWER, 15, ProcessTable(titles=("PID", "CMD"), rows=(("7", "sleep 9"), ("8", "sh")))),
    (ANSWER, 16, STATISTICS),
    (ANSWER, 18, LogSent(bytes=77)),
    (ANSWER, 13, Unpacked(members=12, attributes_lost=1)),
    (EVENT, 0, Ready(version="0.1.0", kernel="6.1.0", phases=PHASES)),
    (EVENT, 0, Ended(session=0, state=Exited(code=3))),
    (EVENT, 0, Ended(session=1, state=Signalled(number=9, core=True), oom_killed=True)),
    (EVENT, 0, Restarting(state=Exited(code=1), count=2, after_ms=200, oom_killed=True)),
    (EVENT, 0, Health(status="unhealthy", failures=3, log=(PROBE,))),
    (EVENT, 0, OutOfMemory(pid=7, name="hungry", rss=4096)),
    (EVENT, 0, MemoryShort(available=1, limit=2)),
    (EVENT, 0, Goodbye(reason="failed", fault=FAULT.but(maybe_done=True))),
]
LIMITS = Limits(payload=1024, window=32768, ring=65536, streams=64, message=1 << 20, flight=32768)
LEAST = hello_of(
    TETHER, LIMITS, instance=bytes(range(16)), connection=bytes(range(8)), durable=False, software="tether 0.1.0"
)
MOST = LEAST.but(role=APPLIANCE, generations=(1, 7), flight=0, ends_suffice=True, durable=True, software="vch 9")
POSITIONS = Resume(
    connection=bytes(range(8)),
    echo=bytes(range(8, 16)),
    known=True,
    send=((0, 0, 100, 220), (17, 5, 0, 1 << 40)),
    receive=((0, 0, 80, 80, 4096, 0), (16, 1, 300, 200, 70000, 1)),
)


def _frame(
    kind: int, key: int = KEY, payload: bytes = b"", *, flags: int = 0, stream: int = 0, offset: int = 0
) -> bytes:
    return b"".join(build(kind, key, flags=flags, stream=stream, offset=offset, parts=[payload] if payload else None))


def examples() -> dict[str, bytes]:
    """Every example as this version writes it."""
    life = 5 << LIFE_SHIFT
    long = bytes(range(256)) * 16
    released, limit = (3).to_bytes(8, "big"), (1 << 20).to_bytes(8, "big")
    frames = {
        "frame hello": _frame(HELLO, 0, pack(LEAST)),
        "frame resume": _frame(RESUME, 0, pack(POSITIONS)),
        "frame bye": _frame(BYE, KEY, cbor.dumps({"reason": "The VM powers off."})),
        "frame data": _frame(DATA, KEY, b"hello", flags=life, stream=17, offset=1 << 33),
        "frame data fin": _frame(DATA, KEY, b"bye", flags=life | FIN, stream=17, offset=5),
        "frame data question": _frame(DATA, flags=life, stream=17, offset=5),
        "frame data abort": _frame(DATA, flags=life | FIN | ABORT, stream=17, offset=5),
        "frame data long": _frame(DATA, KEY, long, stream=17),
        "frame data ends": b"".join(build(DATA, KEY, stream=17, parts=[long[:100], long[100:]], ends=True)),
        "frame ack": _frame(ACK, KEY, released + limit, flags=life, stream=17, offset=5),
        "frame ack fin stop": _frame(ACK, KEY, bytes(16), flags=life | FIN | STOP, stream=17, offset=5),
        "frame nak": _frame(NAK, flags=life, stream=17, offset=5),
        "frame closed": _frame(CLOSED, flags=life, stream=17),
        "hello least": pack(LEAST),
        "hello most": pack(MOST),
        "resume empty": pack(POSITIONS.but(known=False, send=(), receive=())),
    }
    messages = {}
    for kind, id, message in MESSAGES:
        name = f"message {('request', 'answer', 'event')[kind]} {type(message).__name__}"
        messages[name if name not in messages else f"{name} 2"] = write_message(kind, id, message)
    return frames | messages


def read_frozen(path: Path) -> dict[str, bytes]:
    """The examples of a file."""
    lines = [line.rsplit(" ", 1) for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {name: bytes.fromhex(digits) for name, digits in lines}


def test_what_is_written_is_what_was_published() -> None:
    assert examples() == read_frozen(FROZEN / f"generation-{GENERATION}.txt")


@pytest.mark.parametrize("generation", range(OLDEST_GENERATION, GENERATION + 1))
def test_what_was_published_is_understood(generation: int) -> None:
    """Also of older generations: they are still spoken."""
    decoder = Decoder(8192)
    decoder.reset(KEY)
    ends = Decoder(8192, ends=True)
    ends.reset(KEY)
    for name, data in read_frozen(FROZEN / f"generation-{generation}.txt").items():
        what = name.split()[0]
        if what == "frame":
            one = ends if name.endswith("ends") else decoder
            assert not memoryview(one.feed(data))
            assert one.next() is not None, name
            assert one.next() is None
        elif what == "message":
            kind, id, message = read_message(data[4:])
            assert len(data) == 4 + int.from_bytes(data[:4], "big")
            assert (kind, id, message) in MESSAGES or generation < GENERATION
        elif what == "hello":
            assert isinstance(read_hello(memoryview(data)), Hello)
        else:
            assert isinstance(read_resume(memoryview(data)), Resume)


def test_every_message_has_an_example() -> None:
    shown = {type(message).__name__ for _, _, message in MESSAGES}
    answers = {cls.__name__ for cls in (ANSWERS | LATE_ANSWERS).values()}
    assert shown == (REQUESTS | LATE_REQUESTS).keys() | (EVENTS | LATE_EVENTS).keys() | answers | {"Fault"}


def test_every_field_is_shown() -> None:
    """An example in which a field has its default would not notice its loss."""
    missing = []
    seen: dict[str, set[str]] = {}

    def visit(value: object) -> None:
        if isinstance(value, Record):
            filled = seen.setdefault(type(value).__name__, set())
            for name, item in value.__dict__.items():
                if name not in value._defaults or item != value._defaults[name]:
                    filled.add(name)
                visit(item)
        elif isinstance(value, tuple):
            for item in value:
                visit(item)

    for _, _, message in MESSAGES:
        visit(message)
    parts: set[type[Record]] = {Spec, Root, Network, Interface, Route, Volume, Disk, Layer, Verity, Sysctl}
    parts |= {Process, HealthCheck, Restart, Limit, Probe, Share}
    for cls in parts | {type(message) for _, _, message in MESSAGES}:
        missing += [(cls.__name__, name) for name in cls._fields if name not in seen[cls.__name__]]
    assert not missing


if __name__ == "__main__":
    FROZEN.mkdir(exist_ok=True)
    body = "".join(f"{name} {data.hex()}\n" for name, data in examples().items())
    (FROZEN / f"generation-{GENERATION}.txt").write_text(f"# The link's wire, generation {GENERATION}.\n{body}")
