"""The container of this VM: from the spec to a root filesystem with a network, and back to clean disks.

Each function is one step of the boot diagram (tether/__main__.py).
"""

import errno
import os

from tether import furnish, modules, network, root, volumes
from tether.console import say
from tether.execute import Place
from tether.faults import TetherError, fault_of, one_line
from tether.spec import Spec
from tether.starters import Starters
from tether.syscalls import MNT_DETACH, MS_RDONLY, MS_REMOUNT, mount, umount
from tether.terminal import open_devpts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.freezer import Hold
    from tether.link.reactor import Reactor
    from tether.livenet import LiveNetwork

ANNOUNCE_S = 0.1  # after the start: by then the process has been executed
# For what was written to reach the disks.  With the time to end processes (KILL_S) and to say goodbye (FAREWELL_S) of
# tether/agent.py, it stays within the minute after which the appliance switches the VM off.
UNMOUNT_S = 30.0
MAX_HOSTNAME = 64  # __NEW_UTS_LEN of linux/utsname.h


class Container:
    """Grows step by step; what was mounted is remembered for the end."""

    def __init__(self, spec: Spec) -> None:
        if not 0 < len(spec.network.hostname.encode()) <= MAX_HOSTNAME:
            raise TetherError("spec.network.hostname", f"must have 1 to {MAX_HOSTNAME} characters")
        self.spec = spec
        self.plan = root.plan_root(spec.root)
        self._root = self._devpts = -1
        self._starters: Starters | None = None
        self._live: LiveNetwork | None = None
        self._writable: list[str] = []  # mounted disks that may hold data
        self.hold: Hold | None = None  # while they are frozen
        self.thaw: Callable[[], None] | None = None  # once they have been: undoes a freeze that came too late

    def mount_layers(self) -> None:
        """Finds the image's disks and mounts its layers."""
        root.mount_layers(self.plan)

    def mount_writable(self) -> None:
        """Mounts the disk that takes the container's changes."""
        place = root.mount_writable(self.spec.root)
        if place != root.MERGED:
            self._writable.append(place)

    def stack(self) -> None:
        """Stacks the layers to the container's root."""
        self._root = root.stack(self.plan)

    def furnish(self) -> None:
        """Gives it /proc, /sys, /dev and the files that name things."""
        furnish.furnish(self._root)
        self._devpts = open_devpts(self._root)
        if modules.carried():
            from tether.modulefolder import may_load, show_modules  # late: not every kernel has any

            if may_load(self.spec.process):
                show_modules(self._root)
        volumes.mount_names(self._root, self.spec.network, self.spec.root.read_only)
        if self.spec.root.read_only or not self._init_takes_id():
            volumes.mount_machine_id(self._root, self.spec.id, self.spec.root.read_only)

    def _init_takes_id(self) -> bool:
        """Whether an init system is told its machine ID, and writes the file itself: systemd wants to replace one that
        is a mount, which takes a capability that it need not have."""
        return any(entry.startswith(b"container_uuid=") for entry in self.spec.process.env)

    def mount_volumes(self) -> None:
        """Mounts tmpfs and volumes, then write-protects the root if the spec says so."""
        if self.spec.tmpfs or self.spec.volumes:
            from tether import baseline

            before = baseline.state()
            volumes.mount_tmpfs(self._root, self.spec.tmpfs)
            self._writable += volumes.mount_volumes(self._root, self.spec.volumes)
            made = [*(one.path for one in self.spec.tmpfs), *(one.path for one in self.spec.volumes)]
            baseline.note(before, [baseline.real(self._root, path) for path in made])
        if self.spec.root.read_only:
            root.seal(self._root)

    def configure_network(self, reactor: "Reactor") -> None:
        """Names the host, switches interfaces on, adds addresses and routes; waits until they are usable."""
        slow = network.configure(self.spec.network)
        if slow:
            self.live_network(reactor).settle(slow)

    def live_network(self, reactor: "Reactor") -> "LiveNetwork":
        """What changes the network from now on; most containers never ask for it."""
        if self._live is None:
            from tether.livenet import LiveNetwork

            self._live = LiveNetwork(self.spec.network, reactor, volumes.NAMES)
        return self._live

    def announce(self, reactor: "Reactor") -> None:
        """Tells the neighbours which addresses are here, soon: the container need not wait for that."""
        if any(interface.announce for interface in self.spec.network.interfaces):
            reactor.call_later(ANNOUNCE_S, self._announce)

    def _announce(self) -> None:
        from tether.neighbours import announce_all

        try:
            announce_all(self.spec.network)
            if self._live is not None:
                self._live.announce_leases()
        except OSError as error:
            say(one_line(fault_of("announce addresses", error)))

    def leave_network(self) -> None:
        """Gives leases back."""
        if self._live is not None:
            self._live.close()

    def set_parameters(self) -> None:
        """Sets the kernel parameters of the spec, those of its network interfaces too."""
        from tether.sysctl import set_parameters  # late: few specs have any

        set_parameters(self.spec.sysctls)

    @property
    def place(self) -> Place:
        """Where its processes start."""
        hostname = self.spec.network.hostname
        place = Place(root=self._root, devpts=self._devpts, hostname=hostname)
        if self.spec.own_pids:
            from tether.namespaces import PidNamespace  # few ask for it

            return place.but(pids=PidNamespace())
        self._starters = Starters(self._root, hostname)
        return place.but(starters=self._starters)

    def disks(self) -> list[str]:
        """Where the disks are mounted that may change."""
        return [*self._writable, root.MERGED] if self.spec.root.whole is not None else list(self._writable)

    def new_volume_place(self) -> str:
        """A folder to mount one more volume's disk on."""
        place = f"{volumes.VOLUMES}/{len(self._writable)}-added"
        os.makedirs(place)
        self._writable.append(place)
        return place

    def unmount(self) -> None:
        """Leaves every disk clean, in so much time as there is.  Raises TetherError if that does not suffice."""
        from tether.deadline import do_within

        if self._starters is not None:
            self._starters.close()
        for handle in (self._root, self._devpts):
            if handle >= 0:
                os.close(handle)
        do_within(UNMOUNT_S, "unmount", self._unmount_all)

    def _unmount_all(self) -> None:
        """A disk that is still busy is made read-only, which writes everything to it too."""
        if self.thaw is not None:
            self.thaw()
        if self._root >= 0:
            if self.spec.root.whole is not None:
                mount("none", root.MERGED, "", MS_REMOUNT | MS_RDONLY)
            umount(root.MERGED, MNT_DETACH)
        for place in reversed(self._writable):
            try:
                umount(place)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    continue  # detached meanwhile
                mount("none", place, "", MS_REMOUNT | MS_RDONLY)
