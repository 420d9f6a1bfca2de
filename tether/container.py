"""The container of this VM: from the spec to a root filesystem with a network, and back to clean disks.

Each function is one step of the boot diagram (tether/__main__.py).
"""

import errno
import os

from tether.faults import TetherError, fault_of, one_line
from tether.groundwork import Groundwork
from tether.kernel.console import say
from tether.kernel.syscalls import MNT_DETACH, MS_RDONLY, MS_REMOUNT, mount, umount
from tether.net import network
from tether.process.execute import Place
from tether.rootfs import root, volumes
from tether.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.link.reactor import Reactor
    from tether.net.livenet import LiveNetwork
    from tether.requests.freezer import Hold

SOON_S = 0.1  # after the start: by then the process has been executed
# For what was written to reach the disks.  With the time to end processes (KILL_S) and to say goodbye (FAREWELL_S) of
# tether/agent.py, and that for servers (tether/rootfs/shares.py), it stays within the minute after which the appliance
# switches the VM off.
UNMOUNT_S = 30.0
MAX_HOSTNAME = 64  # __NEW_UTS_LEN of linux/utsname.h


class Container:
    """Grows step by step.  `groundwork` is what was done already, in a clone of its image's template."""

    def __init__(self, spec: Spec, groundwork: Groundwork | None = None) -> None:
        if not 0 < len(spec.network.hostname.encode()) <= MAX_HOSTNAME:
            raise TetherError("spec.network.hostname", f"must have 1 to {MAX_HOSTNAME} characters")
        self.spec = spec
        if groundwork is not None:
            groundwork.check(spec)
        self.groundwork = groundwork or Groundwork(spec.root)
        self._live: LiveNetwork | None = None
        self.hold: Hold | None = None  # while they are frozen
        self.thaw: Callable[[], None] | None = None  # once they have been: undoes a freeze that came too late
        self._shares: list[str] = []  # where NFS is mounted
        if spec.shares:
            from tether.rootfs import shares  # late: few specs have any

            shares.check(spec)

    def name(self) -> None:
        """Writes the files that name things."""
        handle, read_only = self.groundwork.handle, self.spec.root.read_only
        volumes.write_names(handle, self.spec.network, read_only)
        if read_only or not self._init_takes_id():
            volumes.mount_machine_id(handle, self.spec.id, read_only)

    def show_modules(self) -> None:
        """Shows it the kernel's modules, if it may load any."""
        from tether.rootfs.modulefolder import may_load, show_modules  # late: not every kernel has any

        if may_load(self.spec.process):
            show_modules(self.groundwork.handle)

    def _init_takes_id(self) -> bool:
        """Whether an init system is told its machine ID, and writes the file itself: systemd wants to replace one that
        is a mount, which takes a capability that it need not have."""
        return any(entry.startswith(b"container_uuid=") for entry in self.spec.process.env)

    def mount_volumes(self) -> None:
        """Mounts tmpfs and volumes, makes places for shares, then write-protects the root if the spec says so."""
        spec = self.spec
        if spec.tmpfs or spec.volumes or spec.shares:
            from tether.rootfs import baseline

            before = baseline.state()
            volumes.mount_tmpfs(self.groundwork.handle, spec.tmpfs)
            self.groundwork.writable += volumes.mount_volumes(self.groundwork.handle, spec.volumes)
            if spec.shares:
                from tether.rootfs import shares

                shares.make_points(self.groundwork.handle, spec.shares)
            tmpfs, disks = [one.path for one in spec.tmpfs], [one.path for one in spec.volumes]
            made = [*tmpfs, *disks, *(one.path for one in spec.shares)]
            baseline.note(before, [baseline.real(self.groundwork.handle, path) for path in made])
        if self.spec.root.read_only:
            root.seal(self.groundwork.handle)

    def configure_network(self, reactor: "Reactor") -> None:
        """Names the host, switches interfaces on, adds addresses and routes; waits until they are usable."""
        slow = network.configure(self.spec.network, self.groundwork.early)
        if slow:
            self.live_network(reactor).settle(slow)

    def live_network(self, reactor: "Reactor") -> "LiveNetwork":
        """What changes the network from now on; most containers never ask for it."""
        if self._live is None:
            from tether.net.livenet import LiveNetwork

            self._live = LiveNetwork(self.spec.network, reactor, volumes.NAMES)
        return self._live

    def join_links(self, reactor: "Reactor") -> None:
        """What the container need not wait for, soon: a clone's link-local addresses, and telling the neighbours which
        addresses are here."""
        if self.groundwork.early or any(interface.announce for interface in self.spec.network.interfaces):
            reactor.call_later(SOON_S, self._join_links)

    def _join_links(self) -> None:
        from tether.net.neighbours import announce_all

        try:
            if self.groundwork.early is not None:
                self.groundwork.early.take_link_locals()
            announce_all(self.spec.network)
            if self._live is not None:
                self._live.announce_leases()
        except OSError as error:
            say(one_line(fault_of("join links", error)))

    def leave_network(self) -> None:
        """Gives leases back."""
        if self._live is not None:
            self._live.close()

    def mount_shares(self) -> None:
        """Mounts what comes over the network."""
        from tether.rootfs import shares

        shares.mount_shares(self.groundwork.handle, self.spec.id, self.spec.shares, self._shares)

    def set_parameters(self) -> None:
        """Sets the kernel parameters of the spec, those of its network interfaces too."""
        from tether.kernel.sysctl import set_parameters  # late: few specs have any

        set_parameters(self.spec.sysctls)

    @property
    def place(self) -> Place:
        """Where its processes start."""
        hostname = self.spec.network.hostname
        place = Place(root=self.groundwork.handle, devpts=self.groundwork.devpts, hostname=hostname)
        if self.spec.own_pids:
            from tether.process.namespaces import PidNamespace  # few ask for it

            return place.but(pids=PidNamespace())
        return place.but(starters=self.groundwork.starters)

    def disks(self) -> list[str]:
        """Where the disks are mounted that may change."""
        return [*self.groundwork.writable, *((root.MERGED,) if self.spec.root.whole is not None else ())]

    def new_volume_place(self) -> str:
        """A folder to mount one more volume's disk on."""
        place = f"{volumes.VOLUMES}/{len(self.groundwork.writable)}-added"
        os.makedirs(place)
        self.groundwork.writable.append(place)
        return place

    def unmount(self) -> None:
        """Leaves every disk clean, in so much time as there is.  Raises TetherError if that does not suffice."""
        from tether.kernel.deadline import do_within

        if self.groundwork.starters is not None:
            self.groundwork.starters.close()
        for handle in (self.groundwork.handle, self.groundwork.devpts):
            if handle >= 0:
                os.close(handle)
        try:
            do_within(UNMOUNT_S, "unmount", self._unmount_all)
        finally:
            if self._shares:
                from tether.rootfs import shares

                shares.leave(self._shares)

    def _unmount_all(self) -> None:
        """A disk that is still busy is made read-only, which writes everything to it too."""
        if self.thaw is not None:
            self.thaw()
        if self.groundwork.handle >= 0:
            if self.spec.root.whole is not None:
                mount("none", root.MERGED, "", MS_REMOUNT | MS_RDONLY)
            umount(root.MERGED, MNT_DETACH)
        for place in reversed(self.groundwork.writable):
            try:
                umount(place)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    continue  # detached meanwhile
                mount("none", place, "", MS_REMOUNT | MS_RDONLY)
