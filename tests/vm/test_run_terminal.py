"""`vch run -t`: a terminal that behaves like one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm.conftest import Vch
from tests.vm.run_helpers import STEP_SECONDS, Terminal

pytestmark = pytest.mark.vm

SLEEP = b"sh -c 'echo ready; exec sleep 1000'\n"  # a key typed before the shell has let go of the terminal is a letter


@contextmanager
def terminal(*words: str, rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
    found = Terminal(*words, rows=rows, columns=columns)
    try:
        yield found
    finally:
        found.close()


def test_a_shell_session(vch: Vch, demo_layout: Path) -> None:
    with terminal("run", "-it", f"oci:{demo_layout}:demo", "sh", rows=33, columns=99) as tty:
        tty.expect(b"# ")
        assert not tty.restored  # raw mode
        tty.type(b"stty size; tty; echo $TERM\n")
        tty.expect(b"33 99\r\n", STEP_SECONDS)
        tty.expect(b"/dev/pts/0\r\nxterm\r\n", STEP_SECONDS)
        tty.resize(50, 132)
        tty.type(b"until stty size | grep '50 132'; do sleep 0.1; done\n")
        tty.expect(b"\n50 132\r\n", STEP_SECONDS)
        tty.type(SLEEP)
        tty.expect(b"\nready\r\n", STEP_SECONDS)
        tty.type(b"\x03")
        tty.expect(b"# ", STEP_SECONDS)
        tty.type(b"echo code $?\n")
        tty.expect(b"code 130\r\n", STEP_SECONDS)
        tty.type(SLEEP)
        tty.expect(b"\nready\r\n", STEP_SECONDS)
        tty.type(b"\x1a")
        tty.expect(b"Stopped", STEP_SECONDS)
        tty.type(b"exit 5\nexit 5\n")  # the first one warns of the stopped job
        assert tty.wait() == 5
        assert tty.restored


@pytest.mark.parametrize(("key", "code"), [(b"\x03", 130), (b"\x1c", 131)])
def test_keys_that_end_a_program(vch: Vch, demo_layout: Path, key: bytes, code: int) -> None:
    # Not a shell that says it: until it has executed sleep, busybox's ignores SIGQUIT.
    program = ("awk", 'BEGIN { print "up"; fflush(); getline }')
    with terminal("run", "-it", f"oci:{demo_layout}:demo", *program) as tty:
        tty.expect(b"up\r\n")
        tty.type(key)
        assert tty.wait(STEP_SECONDS) == code
        assert tty.restored


def test_ctrl_c_without_i_is_a_signal(vch: Vch, demo_layout: Path) -> None:
    with terminal("run", "-t", f"oci:{demo_layout}:demo", "sh", "-c", "stty size; exec sleep 100") as tty:
        tty.expect(b"24 80\r")
        tty.type(b"\x03")
        assert tty.wait(STEP_SECONDS) == 130


def test_the_terminal_is_restored_when_the_machine_is_lost(vch: Vch, demo_layout: Path) -> None:
    with terminal("run", "-it", f"oci:{demo_layout}:demo", "sh", "-c", "echo up; exec sleep 100") as tty:
        tty.expect(b"up\r\n")
        tty.process.send_signal(signal.SIGTERM)
        assert tty.wait() == 143
        assert tty.restored


def test_no_terminal_to_use(vch: Vch, demo_layout: Path) -> None:
    run = vch("run", "-it", f"oci:{demo_layout}:demo", "sh")
    assert (run.returncode, b"the input device is not a TTY" in run.stderr) == (125, True)


def test_a_terminal_without_ours(vch: Vch, demo_layout: Path) -> None:
    run = vch("run", "-t", f"oci:{demo_layout}:demo", "sh", "-c", "test -t 1 && echo yes; echo err >&2")
    assert (run.returncode, run.stdout, run.stderr) == (0, b"yes\r\nerr\r\n", b"")
