"""tether.link by itself: a process that writes lines, and readers that come, are killed and come again.

    python docs/examples/link_between_processes.py

The writer is what tether is in a VM, the readers are appliances.  Between them is a Unix socket; nothing else is shared
but what the first reader leaves on the disk for the second.
"""

import os
import signal
import tempfile
from pathlib import Path

from tether.link.endpoint import Endpoint
from tether.link.events import Connected, Event, Gone
from tether.link.hello import APPLIANCE, TETHER
from tether.link.reactor import Reactor
from tether.link.transport_socket import accept, connected, listen, start_connecting
from tether.link.wire import Wire

STREAM = 17
LINES, LINE = 9, len(b"line 1\n")
SECONDS = 30.0


def write(address: str) -> None:
    """Writes its lines once, whoever reads them, and ends when somebody has the last one."""
    reactor, endpoint, listener = Reactor(), Endpoint(TETHER), listen(address)
    wire = Wire(reactor, endpoint, lambda _event: None)

    def knocked(_ready: int) -> None:
        transport = accept(listener, address)
        if transport is not None:
            wire.attach(transport)  # in place of the one before, if that is still there

    reactor.watch(listener.fileno(), knocked)
    stream = endpoint.stream(STREAM)
    stream.write(b"".join(b"line %d\n" % number for number in range(1, LINES + 1)))
    stream.finish()
    assert reactor.run_until(lambda: stream.drained, SECONDS)


def read(address: str, state: Path | None, most: int, name: str, killed: bool = False) -> None:
    """Reads lines, `most` at most, and saves its state after each; one that is killed dies before it has saved."""
    kept = state.read_bytes() if state and state.exists() else b""
    endpoint = Endpoint.restore(kept) if kept else Endpoint(APPLIANCE, durable=True)

    def happened(event: Event) -> None:
        if isinstance(event, Connected):
            print(f"{name}: connected, {'goes on' if event.resumed else 'is new'}", flush=True)
        elif isinstance(event, Gone):
            print(f"{name}: {event.count} bytes went to others", flush=True)

    reactor = Reactor()
    wire = Wire(reactor, endpoint, happened)
    wire.attach(connected(start_connecting(address), address))
    stream = endpoint.stream(STREAM)
    for number in range(1, most + 1):
        assert reactor.run_until(lambda: stream.buffered >= LINE or stream.ended, SECONDS)
        print(f"{name}: {stream.read(LINE).decode().strip()}", flush=True)
        if killed and number == most:
            os.kill(os.getpid(), signal.SIGKILL)
        snapshot = endpoint.snapshot()
        if state:
            state.write_bytes(snapshot)
        endpoint.saved(snapshot)  # from here on the writer may forget the line
        if stream.ended:
            break
    endpoint.acknowledge()  # now, because this process ends
    endpoint.leave("has read enough")
    reactor.run_once(0)


def main() -> None:
    """Runs the writer and, one after the other, its readers."""
    with tempfile.TemporaryDirectory() as folder:
        address, state = f"unix:{folder}/port", Path(folder, "state")
        writer = os.fork()
        if writer == 0:
            write(address)
            os._exit(0)
        while not Path(folder, "port").exists():
            os.sched_yield()
        for reader in (
            lambda: read(address, state, 3, "first reader", killed=True),
            lambda: read(address, state, 3, "second reader"),
            lambda: read(address, None, LINES, "a stranger"),
        ):
            child = os.fork()
            if child == 0:
                reader()
                os._exit(0)
            _, status = os.waitpid(child, 0)
            print("  (ended)" if status == 0 else f"  (killed by signal {status})", flush=True)
        os.waitpid(writer, 0)


if __name__ == "__main__":
    main()
