"""tether, PID 1 of a container VM.  `boot` is what it does from the first instruction to the last.

A step that fails ends the VM, and says so to the appliance (Goodbye) and on the console: step, object, cause, remedy.
Nothing is printed when all goes well.  What the link could not deliver goes to the console as a record, which the
appliance reads too; and an interpreter that crashes prints where it was (faulthandler) before the kernel panics.
"""

import faulthandler
from time import monotonic_ns

from tether.agent import Agent
from tether.container import Container
from tether.faults import fault_of, one_line
from tether.hostlink import open_link, take_care
from tether.identity import take_identity
from tether.kernel import files, kernelargs, modules, pid1
from tether.kernel.console import CONSOLE, drain, say
from tether.kernel.power import power_off
from tether.link.messages import Fault, Goodbye
from tether.steps import StepFailed, Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Boot:
    """What is known at any moment, so that an end at any moment can be a proper one."""

    def __init__(self) -> None:
        self.steps = Steps()
        self.arguments = kernelargs.KernelArguments()
        self.agent: Agent | None = None
        self.container: Container | None = None

    def up(self) -> str:
        """The boot diagram.  Gives the reason for the power-off; raises StepFailed."""
        step = self.steps
        with step("mount pseudo filesystems"):
            pid1.mount_own()
            self.arguments = kernelargs.parse(files.read("/proc/cmdline").decode())
            step.aloud = self.arguments.debug
        with step("load modules"):
            has_more_modules = modules.load_modules()
        with step("open link"):
            link, far_end = open_link(self.arguments)
            self.agent = agent = Agent(link, pid1.behave_as_init(), step)
        groundwork = None
        if self.arguments.template:
            from tether.template import be_cloned

            groundwork = be_cloned(link, agent.endpoint, step)  # from here on this is another VM
        agent.connect()
        if far_end is not None:  # this VM brings what it is to run, and nobody talks to it
            with step("read spec"):
                take_care(agent.reactor, far_end, self.arguments.spec)

        agent.say_hello()
        start = agent.wait_for_start()
        if start is None:
            return "asked to stop before it was told what to run"
        spec = start.spec

        with step("take identity"):
            take_identity(spec.identity)
        with step("check spec"):
            self.container = agent.container = container = Container(spec, groundwork)
        if groundwork is None:
            container.groundwork.build(step)
        with step("write names"):
            container.name()
            if has_more_modules:
                container.show_modules()
        with step("mount volumes"):
            container.mount_volumes()
        with step("configure network"):
            container.configure_network(agent.reactor)
        if spec.shares:
            with step("mount shares"):
                container.mount_shares()
        if spec.sysctls:
            with step("set kernel parameters"):
                container.set_parameters()
        agent.start_primary(container.place, spec)
        container.join_links(agent.reactor)
        if has_more_modules:
            from tether.kernel.latedrivers import load_late_drivers

            load_late_drivers(agent)

        shutdown = agent.serve()
        agent.stop_sessions(spec.stop_signal, shutdown.grace_ms)
        return shutdown.reason or "asked to stop"

    def down(self, reason: str, fault: Fault | None) -> None:
        """The way out, whatever has been reached.  Each part is tried, also when one before it has failed."""
        agent, container = self.agent, self.container
        if agent is not None and fault is not None:
            self._try("stop sessions", lambda: agent.abandon(fault))
        if container is not None:
            self._try("unmount", container.unmount)
            self._try("leave network", container.leave_network)  # after NFS, which needs it
        self._try("say goodbye", lambda: self._farewell(reason, fault))

    def _farewell(self, reason: str, fault: Fault | None) -> None:
        """Sees to it that the appliance learns the reason: by the link, and by the console if that did not work."""
        delivered = False
        try:
            delivered = self.agent is not None and self.agent.farewell(reason, fault)
        finally:
            if not delivered and not self.arguments.spec:  # a VM that nobody talks to has nobody to read records
                from tether.link.lastwords import write_last_words

                say(write_last_words(Goodbye(reason=reason, fault=fault)))

    def _try(self, step: str, part: "Callable[[], None]") -> None:
        """Does a part of the way out; what goes wrong there is said on the console, and the rest is still done."""
        try:
            part()
        except BaseException as error:  # noqa: BLE001 - PID 1 must come to the power-off
            say(one_line(fault_of(step, error)))


def main(began_ns: int) -> None:
    """PID 1, whose first line ran at `began_ns` (CLOCK_MONOTONIC).

    Does not return, and no exception leaves it: the kernel would panic, and nobody would know why.
    """
    boot = Boot()
    try:
        faulthandler.enable(CONSOLE, all_threads=False)
        boot.steps.start_up(began_ns // 1000)
        reason, fault = boot.up(), None
    except BaseException as error:  # noqa: BLE001 - see above
        fault = error.fault if isinstance(error, StepFailed) else fault_of("serve", error)
        reason = one_line(fault)
        say(reason)
    boot.down(reason, fault)
    drain()
    power_off(boot.arguments.reset_at_end)


if __name__ == "__main__":
    main(monotonic_ns())
