"""Machines that wait: that whoever takes one gets all that it asked for, and that none is left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import vch
from tests.vm.run_helpers import STEP_SECONDS, gone, machines_of, tcp_port, until_waiting
from vch import pool as pool_module

pytestmark = pytest.mark.vm

CLOSED = """
import os, sys, time, vch
from tests.vm.run_helpers import STEP_SECONDS, machines_of
with vch.Pool(warm=2, refill_seconds=0.0) as made:
    with vch.Machine(sys.argv[1], pool=made):
        pass
    deadline = time.monotonic() + STEP_SECONDS
    while made.waiting() < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    print(len(machines_of(os.getpid())) >= 2, end=" ")
print(machines_of(os.getpid()))
"""
WHO_AM_I = "cd /proc/sys/kernel/random; cat uuid boot_id /sys/class/net/eth0/address; hostname"


@pytest.fixture(scope="module")
def image(home: Path, demo_layout: Path) -> str:
    return f"oci:{demo_layout}:demo"


@pytest.fixture(scope="module")
def pool(image: str) -> Iterator[vch.Pool]:
    """A pool that knows one kind of machine."""
    with vch.Pool(refill_seconds=0.1) as made:
        with vch.Machine(image, pool=made):
            pass
        yield made


def test_the_one_that_waited_is_taken(pool: vch.Pool, image: str) -> None:
    waiting = until_waiting(pool)
    with vch.Machine(image, pool=pool) as machine:
        assert waiting <= set(machines_of(os.getpid()))
        assert machine.exec("cat", "/etc/hostname", check=True).stdout
    assert all(gone(pid) for pid in waiting)


def test_each_is_somebody_else(pool: vch.Pool, image: str) -> None:
    said = []
    for _ in range(3):
        until_waiting(pool)
        with vch.Machine(image, pool=pool) as machine:
            said.append(machine.exec("sh", "-c", WHO_AM_I, check=True).stdout.splitlines())
            now = float(machine.exec("date", "+%s", check=True).stdout)
            assert abs(now - time.time()) < STEP_SECONDS
    for lines in zip(*said, strict=True):
        assert len(set(lines)) == 3, lines


def test_volumes_and_ports(pool: vch.Pool, image: str) -> None:
    until_waiting(pool)
    serve = ("nc", "-l", "-p", "80", "-e", "echo", "served")
    with tcp_port() as port, vch.Machine(
        image, *serve, pool=pool, volume="pooled:/v", publish=f"127.0.0.1:{port}:80"
    ) as machine:
        machine.exec("sh", "-c", "echo kept > /v/f", check=True)
        deadline = time.monotonic() + STEP_SECONDS
        answer = b""
        while not answer:  # the server may not listen yet
            assert time.monotonic() < deadline
            with socket.create_connection(("127.0.0.1", port), STEP_SECONDS) as asked:
                try:
                    answer = asked.recv(100)
                except ConnectionResetError:
                    continue
        assert answer == b"served\n"
    with vch.Machine(image, volume="pooled:/v") as machine:
        assert machine.exec("cat", "/v/f", check=True).stdout == "kept\n"


def test_more_memory_than_those_that_wait_have(pool: vch.Pool, image: str) -> None:
    waiting = until_waiting(pool)
    with vch.Machine(image, pool=pool, memory="512m") as machine:
        assert waiting <= set(machines_of(os.getpid()))
        told = machine.exec("awk", "/MemTotal/ {print $2}", "/proc/meminfo", check=True).stdout
        assert 400 * 1024 < int(told) < 512 * 1024  # not 384 MiB; how much of it a kernel keeps for itself differs
        assert machine.machine.add_memory(128).memory_kib == int(told) + 128 * 1024
    assert all(gone(pid) for pid in waiting)


def test_one_that_died_while_it_waited_is_passed_over(pool: vch.Pool, image: str) -> None:
    for pid in until_waiting(pool):
        os.kill(pid, 9)
    with vch.Machine(image, pool=pool) as machine:
        assert machine.exec("echo", "x", check=True).stdout == "x\n"


def test_another_kind_is_not_mixed_up(pool: vch.Pool, image: str) -> None:
    waiting = until_waiting(pool)
    with vch.Machine(image, pool=pool, network="none") as machine:
        assert machine.exec("ls", "/sys/class/net", check=True).stdout.split() == ["lo"]
        assert waiting <= set(machines_of(os.getpid()))


def test_without_memory_none_waits(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "available_mib", lambda: 100)
    with vch.Pool(refill_seconds=0.0) as small:
        with vch.Machine(image, pool=small):
            pass
        time.sleep(0.5)
        assert small.waiting() == 0


def test_one_that_was_taken_outlives_the_pool(image: str) -> None:
    with vch.Pool(refill_seconds=0.0) as short:
        with vch.Machine(image, pool=short):
            pass
        until_waiting(short)
        taken = vch.Machine(image, pool=short)
        taken.start()
    with closing(taken):
        assert taken.exec("echo", "x", check=True).stdout == "x\n"


def test_nothing_is_left_when_it_is_closed(image: str) -> None:
    """In a process of its own: a pool of other tests may just be refilling here."""
    done = subprocess.run([sys.executable, "-c", CLOSED, image], stdout=subprocess.PIPE, text=True, check=True,
                          timeout=2 * STEP_SECONDS)
    assert done.stdout == "True []\n"
