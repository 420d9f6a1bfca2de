"""A VM that nobody talks to: it brings its own spec, and the console is all there is to write to.

The agent knows one way to run a container, which is to be told over the link.  So there is a link here too, but it
leads to this module: it asks for the container to be started, puts on the console what the container writes, says how
it ended, and asks for the shutdown.  Imported late, because no other VM needs it.
"""

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socketpair

from tether.kernel.console import say
from tether.link.endpoint import Endpoint
from tether.link.events import Notified, Readable
from tether.link.hello import APPLIANCE
from tether.link.messages import PRIMARY, Ended, Exited, Shutdown, Signalled, Start, stderr_of, stdin_of, stdout_of
from tether.link.transport import Transport, of_fd
from tether.link.wire import Wire
from tether.sources import medium
from tether.sources import search as sources
from tether.sources.specfile import parse_spec
from tether.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tether.link.events import Event
    from tether.link.reactor import Reactor

_CONSOLE = 1
_CHUNK = 65536


def link_to_self() -> tuple[Transport, Transport]:
    """Both ends of a link."""
    near, far = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    return of_fd(near.detach(), "link to itself"), of_fd(far.detach(), "link to itself")


def find_spec(asked: str) -> Spec:
    """The spec from where the kernel command line says (tether/sources/search.py).  Raises TetherError."""
    found = sources.find(asked or sources.UNASKED)
    spec = parse_spec(found.text, found.name)
    label = sources.label_in(asked)
    if label and not sources.is_medium(found) and names_files(spec):
        medium.mount_medium(label)  # another source says what to run; the layers are on the ISO all the same
    return spec


def names_files(spec: Spec) -> bool:
    """Whether a disk of it is a file on an ISO."""
    disks = [layer.disk for layer in spec.root.layers] + [volume.disk for volume in spec.volumes]
    return any(disk.file for disk in disks)


class Caretaker:
    """Does the appliance's part for one container."""

    def __init__(self, reactor: "Reactor", far: Transport, spec: Spec) -> None:
        self._endpoint = Endpoint(APPLIANCE, far.limits, software="nobody")
        self._wire = Wire(reactor, self._endpoint, self._take)
        self._ended: Ended | None = None
        outputs = (stdout_of(PRIMARY),) if spec.process.terminal else (stdout_of(PRIMARY), stderr_of(PRIMARY))
        self._outputs = {number: self._endpoint.stream(number) for number in outputs}
        self._wire.attach(far)
        self._endpoint.request(Start(spec=spec))
        if spec.process.stdin:
            self._endpoint.stream(stdin_of(PRIMARY)).finish()  # nobody types

    def _take(self, event: "Event") -> None:
        """Something came from the agent.  A Start that fails needs nothing from here: the agent ends the VM itself."""
        if isinstance(event, Readable) and event.stream in self._outputs:
            self._show(event.stream)
        elif isinstance(event, Notified) and isinstance(event.message, Ended) and event.message.session == PRIMARY:
            self._ended = event.message
        if self._ended is not None and all(stream.ended for stream in self._outputs.values()):
            reason = how_it_ended(self._ended)
            self._ended = None
            say(f"tether: {reason}")
            self._endpoint.request(Shutdown(reason=reason))

    def _show(self, number: int) -> None:
        while data := self._outputs[number].read(_CHUNK):
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[os.write(_CONSOLE, rest):]
            except OSError:
                continue  # a VM without a console: there is nobody to read it, and the container is to run all the same


def how_it_ended(ended: Ended) -> str:
    """The end of the container in words."""
    state = ended.state
    if isinstance(state, Exited):
        return f"the container ended with exit code {state.code}"
    assert isinstance(state, Signalled)
    cause = ", because memory ran out" if ended.oom_killed else ""
    return f"the container was ended by signal {state.number}{cause}"
