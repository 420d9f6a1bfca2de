"""What of a container can be there before it is known which container: its root filesystem, and interfaces that are up.

A VM that boots builds the root when its spec has come.  A template of an image has done all of it before it was frozen
(tether/template.py), so its clones have nothing left to do but what is theirs alone.
"""

from tether.faults import TetherError
from tether.process.starters import Starters
from tether.process.terminal import open_devpts
from tether.rootfs import furnish, root, volumes
from tether.spec import Interface, Process, Root, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.net.early import EarlyInterfaces
    from tether.steps import Steps


class Groundwork:
    """Grows step by step; what was mounted is remembered for the end.  Raises TetherError for a root that cannot be."""

    def __init__(self, wanted: Root, interfaces: tuple[Interface, ...] = ()) -> None:
        """`interfaces` are those to be up before the spec is known; their MAC addresses are not yet the right ones."""
        self.wanted, self.interfaces = wanted, interfaces
        self.plan = root.plan_root(wanted)
        self.handle = self.devpts = -1
        self.starters: Starters | None = None
        self.early: EarlyInterfaces | None = None
        self.writable: list[str] = []
        """Mounted disks that may hold data."""

    def build(self, step: "Steps") -> None:
        """All of it.  Raises StepFailed."""
        with step("mount layers"):
            root.mount_layers(self.plan)
        with step("mount writable disk"):
            place = root.mount_writable(self.wanted)
            if place != root.MERGED:
                self.writable.append(place)
        with step("stack root"):
            self.handle = root.stack(self.plan)
            self.starters = Starters(self.handle)
        with step("furnish root"):
            furnish.furnish(self.handle)
            self.devpts = open_devpts(self.handle)
            volumes.mount_names(self.handle)

    def prepare(self, step: "Steps", capabilities: tuple[str, ...] | None) -> None:
        """More, in a template only: interfaces are up, and a thread waits for processes with these `capabilities`.

        Raises StepFailed.
        """
        from tether.net.early import EarlyInterfaces
        from tether.process.privileges import plan

        if self.interfaces:
            with step("configure network"):
                self.early = EarlyInterfaces(self.interfaces)
        if self.starters is not None:
            self.starters.make_ready(plan(Process(args=(), capabilities=capabilities)).kept)

    def check(self, spec: Spec) -> None:
        """Raises TetherError if the spec asks for anything else.  Write-protected the root is later, for any spec."""
        if self.wanted.but(read_only=False) != spec.root.but(read_only=False):
            raise TetherError("spec.root", "is not what this clone was made with", hint="take another template")
        if self.interfaces and not alike(self.interfaces, spec.network.interfaces):
            raise TetherError("spec.network", "is not what this clone was made with", hint="take another template")


def alike(early: tuple[Interface, ...], now: tuple[Interface, ...]) -> bool:
    """Whether interfaces that are up early are those of a spec, but for their MAC addresses."""
    return [one.but(mac="", found_as="") for one in early] == [one.but(mac="", found_as="") for one in now]
