"""Drivers that can wait until the container runs, for a kernel that has them as modules; others have them built in.

The power button: Debian's kernel tells of it as a key of an input device (linux/input.h).  A kernel that was built with
ACPI_TINY_POWER_BUTTON sends PID 1 a signal instead (tether/kernel/pid1.py).
"""

import os
import struct

from tether.faults import fault_of, one_line
from tether.kernel import files
from tether.kernel.console import say
from tether.kernel.modules import load_on_demand
from tether.kernel.pid1 import POWER_BUTTON_PRESSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.agent import Agent

_VIRTIO = "/sys/bus/virtio/devices"
_BALLOON = b"0x0005\n"  # VIRTIO_ID_BALLOON of linux/virtio_ids.h
_INPUT = "/sys/class/input"
_BUTTON_NAME = b"Power Button\n"  # drivers/acpi/button.c
_EVENT = struct.Struct("=qqHHi")  # struct input_event: time, type, code, value
_EV_KEY, _KEY_POWER, _DOWN = 1, 116, 1
_EVENTS_AT_ONCE = 64


def load_late_drivers(agent: "Agent") -> None:
    """Loads what this VM has hardware for.  What fails is said and no more: the container runs."""
    for name, load in (("load balloon driver", _balloon), ("watch power button", lambda: watch_power_button(agent))):
        try:
            load()
        except OSError as error:
            say(one_line(fault_of(name, error)))


def pressed(events: bytes) -> bool:
    """Whether the power button goes down in these input events."""
    whole = len(events) - len(events) % _EVENT.size
    return any(tuple(event[2:]) == (_EV_KEY, _KEY_POWER, _DOWN) for event in _EVENT.iter_unpack(events[:whole]))


def watch_power_button(agent: "Agent") -> None:
    """Ends the VM in good order when somebody presses it."""
    load_on_demand("button", "evdev")
    for name in os.listdir(_INPUT):
        if name.startswith("event") and files.read_if_there(f"{_INPUT}/{name}/device/name") == _BUTTON_NAME:
            _watch(agent, os.open(f"/dev/input/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def _watch(agent: "Agent", handle: int) -> None:
    def ready(_conditions: int) -> None:
        try:
            events = os.read(handle, _EVENT.size * _EVENTS_AT_ONCE)
        except BlockingIOError:
            return
        if pressed(events):
            agent.stop(POWER_BUTTON_PRESSED)

    agent.reactor.watch(handle, ready)


def _balloon() -> None:
    if any(files.read_if_there(f"{_VIRTIO}/{name}/device") == _BALLOON for name in os.listdir(_VIRTIO)):
        load_on_demand("virtio_balloon")
