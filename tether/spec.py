"""What tether is told to run: one schema, whatever the source (docs/protocol.md, "Spec").

Arguments, environment and paths inside the container are bytes: Linux does not promise that they are text.
"""

from tether.link.record import Record

FIREWALL_OPEN = "open"
GENERATION = 1  # of this schema; grows when a peer that does not know a new key must not go on


class Disk(Record):
    """A block device, found by what it says of itself and never by order of appearance.

    Exactly one of `serial` (virtio-blk serial, or SCSI VPD page 0x80), `scsi` ("H:C:T:L"), `file` (a path on the ISO
    that the spec came from) and `label` (of an ext4 file system, on a disk or a partition) is set.  `partition` (from
    1) picks a GPT partition of a disk that is named by serial or address.
    """

    serial: str = ""
    scsi: str = ""
    partition: int = 0
    file: str = ""
    label: str = ""


class Verity(Record):
    """What a layer's content must be: dm-verity's root hash of its blocks.

    The file system has `data_size` bytes; on the same disk a superblock of dm-verity and the hash tree follow it, as
    `veritysetup format --hash-offset=DATA_SIZE --salt=-` writes them (SHA-256, blocks of 4096 bytes).
    """

    root_hash: str
    data_size: int


class Layer(Record):
    """One read-only layer of the image.  With `verity` nothing is read of it that has another hash."""

    disk: Disk
    filesystem: str = "erofs"
    verity: Verity | None = None


class Root(Record):
    """The root filesystem: `layers` from the lowest to the topmost, under a writable top.

    `writable` is the disk (ext4) of the writable top; without it a tmpfs is used.  `read_only` makes the merged root
    read-only for the container.

    `whole` is an ext4 disk that is the root as it stands, written in place; then there are no layers and no top.  (To
    leave such a disk as it is, name it as the one layer.)
    """

    layers: tuple[Layer, ...]
    writable: Disk | None = None
    read_only: bool = False
    whole: Disk | None = None


class Volume(Record):
    """An ext4 disk mounted at `path`; an empty one is first filled with what the image has there, unless `no_copy`."""

    disk: Disk
    path: bytes
    read_only: bool = False
    no_copy: bool = False


class Tmpfs(Record):
    """A tmpfs mounted at `path` with mount(8) `options` such as "size=64m,mode=1777"."""

    path: bytes
    options: str = ""


class Share(Record):
    """An NFS export mounted at `path`: `source` is "SERVER:/EXPORT", `kind` "nfs" or "nfs4".

    `options` are those of nfs(5), for mount(2): the kernel resolves no names, so `addr=` is there and is a number.  The
    container is not started without it: an export that is not mounted after `timeout_ms` is an error.
    """

    path: bytes
    source: str
    kind: str = "nfs"
    options: str = ""
    read_only: bool = False
    timeout_ms: int = 30_000


class Route(Record):
    """Where to send what goes to `destination`: CIDR notation, or "default" (of the gateway's family).

    Without `gateway` the destination is on the link itself.  `source` is the address of ours to send from.
    """

    destination: str
    gateway: str = ""
    metric: int = 0
    source: str = ""


class Sysctl(Record):
    """A kernel parameter (sysctl.d(5)): `key` is a path below /proc/sys with dots ("net.core.somaxconn") or slashes."""

    key: str
    value: str


class Interface(Record):
    """A network interface found by its MAC address; addresses in CIDR notation ("10.0.2.15/24").

    `dhcp` asks a DHCPv4 server for an address, routes, name servers and search domains; what stands here counts more.
    `check_duplicates` lets the kernel ask whether another machine has an IPv6 address before it is used (RFC 4862).
    `announce` tells the neighbours, right after the start, that these addresses are here now.
    `firewall` is a level of tether/net/firewall.py; `published` are ports ("80/tcp"), `peers` networks it speaks of.
    `found_as`: the MAC address that it has until it is given `mac`; a clone's NIC has its template's.
    """

    mac: str
    addresses: tuple[str, ...] = ()
    gateway4: str = ""
    gateway6: str = ""
    mtu: int = 0
    routes: tuple[Route, ...] = ()
    dhcp: bool = False
    check_duplicates: bool = False
    announce: bool = True
    found_as: str = ""
    firewall: str = FIREWALL_OPEN
    published: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()


class Host(Record):
    """One line of /etc/hosts."""

    address: str
    names: tuple[str, ...]


class Network(Record):
    """Name, interfaces and resolver of the container.  `aliases` are more names of it, for its own hosts file."""

    hostname: str
    domainname: str = ""
    interfaces: tuple[Interface, ...] = ()
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    resolver_options: tuple[str, ...] = ()
    hosts: tuple[Host, ...] = ()
    aliases: tuple[str, ...] = ()


class Terminal(Record):
    """A pseudo terminal of this size, in characters."""

    rows: int = 24
    columns: int = 80


# Capabilities by number (capabilities(7), linux/capability.h); "CAP_" is left out, as Docker's users do.
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip

# Limits by number (getrlimit(2), asm-generic/resource.h); "RLIMIT_" is left out.
LIMITS = (
    "cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks", "sigpending",
    "msgqueue", "nice", "rtprio", "rttime",
)  # fmt: skip
UNLIMITED = -1


class Limit(Record):
    """A resource limit: `name` is one of LIMITS, `soft` and `hard` are UNLIMITED or what getrlimit(2) says."""

    name: str
    soft: int
    hard: int


class Process(Record):
    """What a session runs, in the words of the OCI runtime-spec (config.md, "Process").

    `user` is Docker's USER string ("", "name", "uid", "name:group", "uid:gid"), resolved against the container's own
    passwd and group files; so are `groups`, names or numbers that are added to the user's.  `stdin` false means
    /dev/null.  `nice` is setpriority(2)'s, `oom_score_adj` proc(5)'s.

    `capabilities` are names of CAPABILITIES, the bounding set: what root has, and what setuid and file capabilities can
    give.  None is all that the kernel knows.  Who is not root keeps `ambient` of it, and passes it on to programs.

    An `idle` process executes nothing (`args` is empty) and waits for a signal that ends it: for a container that is
    used by execs only, whose image need not have a program that waits.
    """

    args: tuple[bytes, ...]
    env: tuple[bytes, ...] = ()
    cwd: bytes = b"/"
    user: str = ""
    terminal: Terminal | None = None
    stdin: bool = False
    groups: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    capabilities: tuple[str, ...] | None = None
    ambient: tuple[str, ...] = ()
    no_new_privileges: bool = False
    oom_score_adj: int = 0
    umask: int = 0o022
    nice: int = 0
    idle: bool = False


class Identity(Record):
    """What no two VMs may share.  Taken in before anything that needs it."""

    entropy: bytes
    clock_ns: int  # CLOCK_REALTIME of the host when it sent the spec


class HealthCheck(Record):
    """How to find out whether the container works: `args` are run again and again, exit code 0 means that it does.

    As Docker's HEALTHCHECK: every `interval_ms` after the last one ended (`start_interval_ms` until it has been healthy
    once, within the start period), killed after `timeout_ms`, and `retries` failures in a row, those in the first
    `start_period_ms` not counted, make it unhealthy.
    """

    args: tuple[bytes, ...]
    interval_ms: int = 30_000
    timeout_ms: int = 30_000
    start_period_ms: int = 0
    start_interval_ms: int = 5_000
    retries: int = 3


class Restart(Record):
    """The primary process is started again when it has ended: `always`, or else after a failure.

    After a failure at most `retries` times; 0 is without end.
    """

    always: bool = False
    retries: int = 0


class Spec(Record):
    """One container VM.

    `own_pids` gives the container a PID namespace, in which the primary process is PID 1.
    """

    id: str
    identity: Identity
    root: Root
    network: Network
    process: Process
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    stop_signal: int = 15
    sysctls: tuple[Sysctl, ...] = ()
    own_pids: bool = False
    health: HealthCheck | None = None
    restart: Restart | None = None
    shares: tuple[Share, ...] = ()
