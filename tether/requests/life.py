"""Requests about the VM itself while it runs: its disks frozen, its clock set, hardware that comes and goes."""

from tether.faults import TetherError
from tether.kernel.clock import set_clock
from tether.link.late_messages import AttachVolume, DetachVolume, Freeze, SetClock, Thaw, UseHardware
from tether.link.messages import Done
from tether.link.record import Record
from tether.requests.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.agent import Agent
    from tether.container import Container
    from tether.requests.worker import Desk


def take(agent: "Agent", id: int, message: Record) -> None:
    """Answers one of them.  Raises TetherError or OSError."""
    if isinstance(message, SetClock):
        agent.endpoint.answer(id, set_clock(message))
    elif isinstance(message, Freeze):
        _freeze(agent, id, message)
    elif isinstance(message, Thaw):
        _thaw(agent, id)
    elif isinstance(message, AttachVolume):
        _attach(agent, id, message)
    elif isinstance(message, DetachVolume):
        _detach(agent, id, message)
    elif isinstance(message, UseHardware):
        _use(agent, id, message)


def _container(agent: "Agent") -> "Container":
    if agent.container is None:
        raise TetherError("container", "is not running")
    return agent.container


def _freeze(agent: "Agent", id: int, message: Freeze) -> None:
    from tether.requests.freezer import Hold, freeze_within

    container = _container(agent)
    if container.hold is not None:
        raise TetherError("disks", "are frozen already")
    places = container.disks()

    def work(_desk: "Desk") -> Record:  # in a child: it waits until everything is written
        freeze_within(places, message.timeout_ms)
        return Done()

    container.hold = Hold(agent, container, message.timeout_ms)
    try:
        Worker("freeze", work).start(agent, id)
    except BaseException:
        container.hold.release()
        raise


def _thaw(agent: "Agent", id: int) -> None:
    container = _container(agent)
    if container.hold is None:
        raise TetherError("disks", "are not frozen", hint="a freeze ends by itself when its time is over")
    container.hold.release()
    agent.endpoint.answer(id, Done())


def _attach(agent: "Agent", id: int, message: AttachVolume) -> None:
    volume, place = message.volume, _container(agent).new_volume_place()

    def work(desk: "Desk") -> Record:
        from tether.rootfs import baseline
        from tether.rootfs.volumes import mount_volume

        before = baseline.state()
        mount_volume(desk.root, volume, place)
        baseline.note(before, [baseline.real(desk.root, volume.path)])
        return Done()

    Worker("attach volume", work).start(agent, id)


def _detach(agent: "Agent", id: int, message: DetachVolume) -> None:
    path = message.path

    def work(desk: "Desk") -> Record:
        from tether.requests.detach import unmount_volume

        unmount_volume(desk.root, path)
        return Done()

    Worker("detach volume", work).start(agent, id)


def _use(agent: "Agent", id: int, message: UseHardware) -> None:
    from tether.requests.hotplug import settle_in, use_hardware

    def work(_desk: "Desk") -> Record:
        return use_hardware(message)

    if agent.container is None:  # there is nothing else to do yet, and nobody who would have to wait
        agent.endpoint.answer(id, settle_in(message))
        return
    Worker("use hardware", work).start(agent, id)
