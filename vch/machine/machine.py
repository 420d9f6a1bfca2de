"""One container VM, as programs use it.

    with Machine(config, program) as machine:       # boots
        session = machine.start(spec, Stdio(stdout=1, stderr=2))
        code = session.wait()

Whatever happens in the block, nothing of the machine is left after it.  Methods may be called from any thread; each
wait has a deadline or ends with the machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, cast

from tether.link.late_messages import LogSent, SendLog, WatchMemory
from tether.link.messages import PRIMARY, Exec, Pong, Ready, Shutdown, Start, Started
from tether.link.messages import Ping as PingRequest
from tether.spec import Interface, Network, Process, Spec
from vch.clone.key import clone_of
from vch.clone.origin import Cloning
from vch.clone.top import clear_top, take_top
from vch.disks import format_blank
from vch.errors import BootError, DeadlineError, MachineError
from vch.machine.driver import Driver
from vch.machine.explain import Stage
from vch.machine.identity import new_identity
from vch.machine.keep_clock import ClockKeeper
from vch.machine.session import Session, Stdio
from vch.machine.transfer import Transfer
from vch.promise import Promise
from vch.qemu.config import TEMPLATE_MAC, Accelerator, Drive, Frozen, MachineConfig

if TYPE_CHECKING:
    from typing import Any

    from tether.link.late_messages import HardwareInUse, InterfaceUp, SetNames
    from tether.link.record import Record
    from vch.clone.store import Template
    from vch.machine.hardware import Hardware
    from vch.machine.sinks import Sink

# An emulated machine on a host that is busy with several others: 40 times what it takes alone.  A machine that fails
# says so at once; this is for one that does nothing at all.
BOOT_SECONDS = {Accelerator.KVM: 30.0, Accelerator.TCG: 180.0}
WAKE_SECONDS = {Accelerator.KVM: 10.0, Accelerator.TCG: 60.0}  # a clone; a machine that boots is the way out
START_SECONDS = {Accelerator.KVM: 60.0, Accelerator.TCG: 300.0}  # seeding a volume copies what the image has there
ANSWER_SECONDS = 60.0
POWER_OFF_SECONDS = 60.0  # sync, unmount, power off, after the processes are gone
KILL_SECONDS = 15.0


def _silent(_sentence: str) -> None:
    """For who does not want to know."""


class Machine:
    """See the module."""

    def __init__(
        self,
        config: MachineConfig,
        program: str,
        on_notice: Callable[[str], None] = _silent,
        *,
        cloning: Cloning | None = None,
        on_detail: Callable[[str], None] = _silent,
    ) -> None:
        """`on_notice` hears, from another thread, what matters although it has ended nothing: a full disk.

        With `cloning` it starts as a clone where it can (docs/clone.md); `on_detail` hears of what, or why it boots.
        """
        self.config = config
        self.cloned = False
        """Whether it was started as a clone."""
        self._program, self._on_notice, self._on_detail = program, on_notice, on_detail
        self._cloning = cloning
        self._killed = False
        self._mac = config.network.mac if config.network is not None else ""
        self._driver = Driver(config, program, on_notice)
        self._numbers = itertools.count(PRIMARY + 1)
        self._booted = False
        self._hardware: Hardware | None = None
        self._boot_mib = config.memory_mib  # what QEMU was started with

    def __enter__(self) -> Machine:
        self.boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def boot(self) -> Ready:
        """Starts QEMU and waits until tether is ready for a spec.  Raises BootError, or MachineError."""
        self._booted = True
        cloning = self._cloning
        template = cloning.template(self.config, self._program, self._on_detail) if cloning is not None else None
        if cloning is None or template is None:
            format_blank(self.config, self.config.drives)
            return self._come_up(BOOT_SECONDS[self.config.accelerator])
        cold = self._driver
        try:
            ready = self._wake(template)
        except MachineError as error:
            if self._killed:
                raise
            if self._driver.stage is Stage.READY:
                cloning.give_up_growing(self.config, self._program)
            else:
                cloning.give_up(template, error)
            self._on_detail(f"it boots, because its clone did not come up: {error}")
            self._driver, self._hardware = cold, None  # of the clone nothing is left
            self._boot_mib = self.config.memory_mib
            clear_top(template, self.config)
            return self._come_up(BOOT_SECONDS[self.config.accelerator])
        finally:
            template.close()
        self.cloned, self._mac = True, TEMPLATE_MAC
        return ready

    def _wake(self, template: Template) -> Ready:
        """Starts as a clone, with the memory that its template lacks plugged in.  As _come_up."""
        self._boot_mib = template.facts.memory_mib
        take_top(template, self.config)
        frozen = Frozen(template.memory, template.state, template.facts.drives)
        config = clone_of(self.config, frozen, self._boot_mib)
        self._driver = Driver(config, self._program, self._on_notice)
        ready = self._come_up(WAKE_SECONDS[self.config.accelerator])
        try:
            self._grow(self._boot_mib, self.config.memory_mib)
        except BaseException:
            self._close_driver()
            raise
        return ready

    def _grow(self, from_mib: int, to_mib: int) -> None:
        """Plugs in what is missing.  Raises MachineError."""
        if to_mib > from_mib:
            self._on_detail(f"{to_mib - from_mib} MiB of memory are plugged in")
            self.add_memory(to_mib - from_mib)

    def _come_up(self, seconds: float) -> Ready:
        """Starts the driver, and waits for the agent's Ready.  Whatever goes wrong: QEMU is gone then."""
        self._driver.start()
        try:
            return self._driver.ready.result(seconds)
        except DeadlineError:
            console = self._driver.console
            heard = f"; last heard: {console.last_words}" if console.last_words else ", and nothing was heard from it"
            self._close_driver()
            cause = f"it did not come up within {seconds:.0f} s{heard}"
            raise BootError("boot", "guest", cause, "run it with -D to see the console", console.tail()) from None
        except BaseException:
            self._close_driver()
            raise

    def adopt(self, config: MachineConfig) -> None:
        """Gives what it lacks of `config`, disks, ports and memory, to a machine that is like it otherwise.

        Raises MachineError; then it is of no use any more.
        """
        from vch.clone.adopt import adopt

        had, self.config = self.config, config
        format_blank(config, config.drives[len(had.drives):])
        adopt(self._driver.monitor, had, config)
        self._grow(had.memory_mib, config.memory_mib)

    def start(self, spec: Spec, stdio: Stdio | None = None) -> tuple[Session, Started]:
        """Makes it the container of `spec` and runs its primary process.

        Raises GuestError if a step fails in the guest, or the error the machine ended with.
        """
        spec = spec.but(identity=new_identity())
        spec = spec.but(network=self._as_found(spec.network))
        started = self._open(PRIMARY, Start(spec=spec), stdio or Stdio(), START_SECONDS[self.config.accelerator])
        ClockKeeper(self._driver).begin()
        return started

    def exec(
        self, process: Process, stdio: Stdio | None = None, detached: bool = False
    ) -> tuple[Session, Started]:
        """Runs another process in the container.

        A `detached` one has /dev/null for its standard streams; its end is told as that of any other.
        """
        number = next(self._numbers)
        message = Exec(session=number, process=process, detached=detached)
        if detached:
            stdio = Stdio(streams=False)
        return self._open(number, message, stdio or Stdio(), ANSWER_SECONDS)

    def transfer(
        self, message: Callable[[int], Record], *, source: int | None = None, sink: Sink | None = None
    ) -> Transfer:
        """Moves files: `message` makes the request out of a session number; `source` is read, `sink` written."""
        number = next(self._numbers)
        return Transfer(self._driver, number, message(number), source, sink)

    def ping(self) -> Pong:
        """Asks whether anybody is there."""
        return cast("Pong", self._driver.request(PingRequest()).result(ANSWER_SECONDS))

    def add_interface(self, interface: Interface, backend: Mapping[str, Any] | None = None) -> InterfaceUp:
        """Plugs a NIC in and has the guest bring it up: its name in the guest, and its addresses, those of DHCP too.

        `backend` is where it leads, as QMP's netdev_add takes it (without an id): a user-mode network of its own
        unless said.  Raises GuestError or MachineError; the NIC is unplugged then.
        """
        from vch.machine import nics

        return nics.add(self._driver.monitor, self.tell, interface, backend or nics.USER_BACKEND)

    def remove_interface(self, mac: str) -> None:
        """Unplugs a NIC that `add_interface` has plugged in, after the guest has given its lease back."""
        from vch.machine import nics

        nics.remove(self._driver.monitor, self.tell, mac)

    def set_names(self, names: SetNames) -> None:
        """Changes what /etc/hosts and /etc/resolv.conf of the container say."""
        self.tell(names).result(ANSWER_SECONDS)

    def announce(self) -> None:
        """Has the guest tell its neighbours which addresses it has: after it has moved to another host."""
        from tether.link.late_messages import Announce

        self.tell(Announce()).result(ANSWER_SECONDS)

    def watch_memory(self, on_event: Callable[[Record], None]) -> None:
        """From now on `on_event` hears, in another thread, of OutOfMemory and MemoryShort."""
        self._driver.observer.on_event = on_event
        self.tell(WatchMemory()).result(ANSWER_SECONDS)

    def log(self, level: str = "info", on_line: Callable[[str], None] | None = None) -> list[str]:
        """The agent's own log, from this one of LEVELS on: lines so far; `on_line` hears of those to come.

        The agent logs from the first call on.  Raises GuestError for an unknown level.
        """
        observer = self._driver.observer
        observer.on_line = on_line or observer.on_line
        answer = cast("LogSent", self.tell(SendLog(level=level)).result(ANSWER_SECONDS))
        return observer.lines(answer.bytes, ANSWER_SECONDS)

    def tell(self, message: Record) -> Promise[Record]:
        """Sends a request and does not wait for the answer.  Safe in signal handlers."""
        return self._driver.request(message)

    def stop(self, seconds: float, reason: str = "asked to stop") -> None:
        """Has the guest end its processes (stop signal, after `seconds` SIGKILL), unmount and power off; at once back.

        Safe in signal handlers.  `join` waits for it.  A guest that does not manage it is killed from here.
        """
        self._driver.request(Shutdown(grace_ms=max(0, int(seconds * 1000)), reason=reason))
        self._driver.kill_later(max(0.0, seconds) + POWER_OFF_SECONDS)

    def pause(self) -> None:
        """Suspends it: everything is written out, its disks hold still, its processors stop.  `resume` goes on."""
        self.hardware.pause()

    def resume(self) -> None:
        """Goes on after `pause`; the clock is set first."""
        self.hardware.resume()

    def press_power_button(self) -> None:
        """Asks for an orderly end as ACPI does: stop signal, 10 s, SIGKILL, power-off.  `join` waits for it."""
        self.hardware.press_power_button()

    def attach_disk(self, drive: Drive, path: str, no_copy: bool = False) -> None:
        """Mounts one more disk, an ext4 with a serial number of its own, at `path` of the running container."""
        self.hardware.attach(drive, path, no_copy)

    def detach_disk(self, path: str) -> None:
        """Unmounts a disk that was attached, and pulls it.  Raises GuestError while something uses it."""
        self.hardware.detach(path)

    def add_memory(self, mib: int) -> HardwareInUse:
        """More memory while it runs, in blocks of 128 MiB: up to `config.max_memory_mib` in all, a clone to 64 GiB."""
        return self.hardware.add_memory(mib)

    def add_cpus(self, more: int) -> HardwareInUse:
        """Gives it more processors while it runs, up to `config.max_cpus` in all."""
        return self.hardware.add_cpus(more)

    @property
    def hardware(self) -> Hardware:
        """What can be done to it while it runs; imported when it is first used."""
        if self._hardware is None:
            from vch.machine.hardware import Hardware

            self._hardware = Hardware(self._driver, self.config, self._boot_mib)
        return self._hardware

    def join(self, seconds: float) -> MachineError:
        """Waits for the machine to end; how it ended.  Raises DeadlineError."""
        return self._driver.gone.result(seconds)

    def end(self, spec: Spec | None) -> None:
        """The end of the container of `spec`: an orderly one if anything of it outlives the machine, else at once."""
        lasting = any(not (drive.read_only or drive.volatile) for drive in self.config.drives)
        if lasting or (spec is not None and spec.shares):
            self.power_off()
        else:
            self.close()

    def power_off(self) -> None:
        """An orderly end: file systems of volumes are unmounted.  A guest that does not manage it in time is killed."""
        self.stop(0, "the container has ended")
        self.join(POWER_OFF_SECONDS + KILL_SECONDS)
        self.close()

    def kill(self) -> None:
        """Ends it at once, as pulling the plug would."""
        self._killed = True
        self._driver.kill()

    def abandon_output(self) -> None:
        """Does not wait for somebody who does not read.  Safe in signal handlers."""
        self._driver.abandon_output()

    def close(self) -> None:
        """Sees to it that nothing of it is left.  A second call does nothing."""
        if not self._booted:
            return
        self._killed = True
        self._close_driver()

    def _close_driver(self) -> None:
        self._driver.kill()
        if not self._driver.join(KILL_SECONDS):
            # Only output that nobody takes can hold it up now, and who closes a machine does not wait for that.
            self._driver.abandon_output()
            self._driver.join(KILL_SECONDS)

    @property
    def console(self) -> str:
        """The end of what the console said."""
        return self._driver.console.tail()

    def _as_found(self, network: Network) -> Network:
        """The network as the guest finds it: a NIC that was there before its address was known has another one yet."""
        return network.but(interfaces=tuple(
            nic.but(found_as=self._mac) if self._mac not in ("", nic.mac) else nic for nic in network.interfaces
        ))

    def _open(self, number: int, message: Record, stdio: Stdio, seconds: float) -> tuple[Session, Started]:
        session = Session(self._driver, number)
        started = self._driver.open(session, message, lambda: session.loop_connect(stdio))
        return session, cast("Started", started.result(seconds))

