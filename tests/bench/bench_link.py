"""Throughput of the link over a socketpair between two processes, beside a raw copy of the same bytes.

    .venv/bin/python tests/bench/bench_link.py [--mib 512] [--json FILE]

Shown: CPU seconds of both processes, MB per CPU second, and the link's share of the raw copy's.  A socketpair moves
some GB/s; the transports of a VM move 10 to 300 MB/s, so the second number to look at is how far above those the link
is.
"""

import argparse
import json
import os
import resource
import socket
import time
from collections.abc import Callable
from functools import partial

from tether.link.endpoint import Endpoint
from tether.link.events import Answered, Connected, Event, Requested
from tether.link.hello import APPLIANCE, TETHER
from tether.link.messages import Done, Ping
from tether.link.reactor import Reactor
from tether.link.transport import of_fd
from tether.link.wire import Wire

CHUNK = 65536
STREAM = 17
PATIENCE = 300.0


def cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def both(sender: Callable[[int], None], receiver: Callable[[int], None]) -> tuple[float, float]:
    """Runs the sender in a child and the receiver here; returns CPU and wall seconds of the two."""
    a, b = socket.socketpair()
    cpu_before, wall_before = cpu(), time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            b.close()
            sender(a.detach())
            status = 0
        finally:
            os._exit(status)
    a.close()
    receiver(b.detach())
    _, code = os.waitpid(child, 0)
    if code:
        raise SystemExit("the sending process failed")
    return cpu() - cpu_before, time.monotonic() - wall_before


def raw_sender(size: int) -> Callable[[int], None]:
    def run(fd: int) -> None:
        chunk, left = bytes(CHUNK), size
        while left:
            left -= os.write(fd, chunk[: min(left, CHUNK)])
        os.close(fd)

    return run


def raw_receiver(fd: int) -> None:
    while os.read(fd, CHUNK):
        pass
    os.close(fd)


def link_sender(size: int, chunk_size: int) -> Callable[[int], None]:
    def run(fd: int) -> None:
        reactor = Reactor()
        endpoint = Endpoint(TETHER)
        wire = Wire(reactor, endpoint, lambda event: None)
        wire.attach(of_fd(fd))
        stream, chunk, left = endpoint.stream(STREAM), bytes(chunk_size), size
        while left or not stream.drained:
            while left and stream.room >= chunk_size:
                left -= stream.write(chunk[: min(left, chunk_size)])
            if not left:
                stream.finish()
            reactor.run_once(PATIENCE)
        wire.flush(PATIENCE)

    return run


def link_receiver(size: int) -> Callable[[int], None]:
    def run(fd: int) -> None:
        reactor = Reactor()
        endpoint = Endpoint(APPLIANCE)
        closed: list[str] = []
        wire = Wire(reactor, endpoint, lambda event: None, closed.append)
        wire.attach(of_fd(fd))
        stream, got = endpoint.stream(STREAM), 0
        while not stream.ended:
            reactor.run_once(PATIENCE)
            while data := stream.read(1 << 20):
                got += len(data)
        if got != size:
            raise SystemExit(f"{got} of {size} bytes arrived")
        reactor.run_until(lambda: bool(closed), PATIENCE)

    return run


def round_trips(count: int) -> float:
    """CPU microseconds of one request and its answer, both ends in one process."""
    reactor = Reactor()
    a, b = socket.socketpair()
    tether, appliance = Endpoint(TETHER), Endpoint(APPLIANCE)
    seen: list[Event] = []

    def answer(event: Event) -> None:
        if isinstance(event, Requested):
            tether.answer(event.id, Done())

    wires = [Wire(reactor, tether, answer), Wire(reactor, appliance, seen.append)]
    wires[0].attach(of_fd(a.detach()))
    wires[1].attach(of_fd(b.detach()))
    reactor.run_until(lambda: any(isinstance(event, Connected) for event in seen), PATIENCE)
    before = cpu()
    for number in range(count):
        appliance.request(Ping())
        answered = partial(_answered, seen, number + 1)
        reactor.run_until(answered, PATIENCE)
    spent = cpu() - before
    for wire in wires:
        wire.close()
    reactor.close()
    return spent / count * 1e6


def _answered(seen: list[Event], count: int) -> bool:
    """The events are one Connected, then one Answered for each request."""
    return len(seen) > count and isinstance(seen[-1], Answered)


def main() -> None:
    """Prints the table and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    size = options.mib << 20
    rows = {}
    quarter = size // 4
    for name, moved, sender, receiver in (
        ("raw copy, 64 KiB", size, raw_sender(size), raw_receiver),
        ("link, 64 KiB writes", size, link_sender(size, CHUNK), link_receiver(size)),
        ("link, 4 KiB writes", quarter, link_sender(quarter, 4096), link_receiver(quarter)),
    ):
        spent, wall = both(sender, receiver)
        megabytes = moved / 1e6
        rows[name] = {"cpu_s": spent, "wall_s": wall, "mb_per_cpu_s": megabytes / spent, "mb_per_s": megabytes / wall}
    floor = rows["raw copy, 64 KiB"]["mb_per_cpu_s"]
    print(f"{'':24}{'CPU s':>8}{'MB/CPU s':>10}{'MB/s':>8}{'of raw':>8}")
    for name, row in rows.items():
        row["of_raw"] = row["mb_per_cpu_s"] / floor
        print(f"{name:24}{row['cpu_s']:8.2f}{row['mb_per_cpu_s']:10.0f}{row['mb_per_s']:8.0f}{row['of_raw']:8.2f}")
    micro = round_trips(2000)
    print(f"request and answer: {micro:.0f} CPU us, both ends")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"throughput": rows, "round_trip_cpu_us": micro}, file, indent=1)


if __name__ == "__main__":
    main()
