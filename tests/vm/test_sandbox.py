"""vch.Machine, as programs use it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vch
from vch.sandbox import option_words

pytestmark = pytest.mark.vm

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
SECONDS = 120.0


@pytest.fixture(scope="module")
def image(home: Path, demo_layout: Path) -> str:
    return f"oci:{demo_layout}:demo"


@pytest.fixture(scope="module")
def box(image: str) -> Iterator[vch.Machine]:
    with vch.Machine(image, network="none", env={"NAME": "a value"}, tmpfs=["/mem:size=1m"], hostname="box") as machine:
        yield machine


class TestExec:
    def test_output_and_code(self, box: vch.Machine) -> None:
        done = box.exec("sh", "-c", "echo out; echo err >&2; exit 3")
        assert (done.code, done.stdout, done.stderr) == (3, "out\n", "err\n")
        with pytest.raises(vch.ProgramFailedError, match="exit code 3: err") as raised:
            box.exec("sh", "-c", "echo err >&2; exit 3", check=True)
        assert raised.value.completed.code == 3

    def test_input(self, box: vch.Machine) -> None:
        assert box.exec("tr", "a-z", "A-Z", input="hello").stdout == "HELLO"
        much = os.urandom(3_000_000)
        assert box.exec("cat", input=much).output == much

    def test_environment_user_and_folder(self, box: vch.Machine) -> None:
        assert box.exec("sh", "-c", "echo $NAME $MORE; pwd; id -un; hostname", env={"MORE": "m"}, cwd="/tmp",
                        user="nobody").stdout == "a value m\n/tmp\nnobody\nbox\n"

    def test_a_program_that_takes_too_long_is_killed(self, box: vch.Machine) -> None:
        with pytest.raises(vch.DeadlineError, match="sleep 1000"):
            box.exec("sleep", "1000", timeout=1)
        assert "sleep" not in box.exec("ps").stdout

    def test_what_cannot_be_run(self, box: vch.Machine) -> None:
        with pytest.raises(vch.GuestError, match="no-such-program"):
            box.exec("no-such-program")

    def test_many_at_a_time(self, box: vch.Machine) -> None:
        sessions = [box.popen("sh", "-c", f"sleep 0.2; exit {number}") for number in range(20)]
        assert [session.wait(SECONDS) for session in sessions] == list(range(20))

    def test_a_terminal(self, box: vch.Machine) -> None:
        reading, writing = os.pipe()
        session = box.popen("stty", "size", stdio=vch.Stdio(stdout=writing), terminal=(33, 99))
        os.close(writing)
        assert session.wait(SECONDS) == 0
        with os.fdopen(reading, "rb") as pipe:
            assert pipe.read() == b"33 99\r\n"


class TestFiles:
    def test_in_and_out(self, box: vch.Machine, tmp_path: Path) -> None:
        (tmp_path / "in/sub").mkdir(parents=True)
        (tmp_path / "in/sub/file").write_text("content")
        box.put(tmp_path / "in", "/tmp", owner="nobody")
        assert box.exec("stat", "-c", "%U", "/tmp/in/sub/file").stdout == "nobody\n"
        box.get("/tmp/in/.", tmp_path / "out")
        assert (tmp_path / "out/sub/file").read_text() == "content"
        assert box.stat("/tmp/in/sub/file").size == 7
        changes = [str(change) for change in box.diff()]
        assert "A /tmp/in/sub/file" in changes
        assert not [line for line in changes if line.startswith("A /mem")]


class TestLife:
    def test_a_machine_runs_a_command_to_its_end(self, image: str) -> None:
        done = vch.Machine.run(image, "sh", "-c", "echo done; exit 4", network="none")
        assert (done.code, done.stdout) == (4, "done\n")

    def test_signals_end_the_primary_process(self, image: str) -> None:
        with vch.Machine(image, network="none") as machine:
            assert machine.exec("true").code == 0
            machine.signal("TERM")
            assert machine.wait(SECONDS).code == 128 + 15
            with pytest.raises(vch.MachineError):
                machine.exec("true")

    def test_stop_and_what_is_left(self, image: str, home: Path) -> None:
        with vch.Machine(image, network="none", volume="kept-by-test:/data") as machine:
            machine.exec("sh", "-c", "echo kept > /data/file", check=True)
        with vch.Machine(image, network="none", volume=["kept-by-test:/data:ro"]) as machine:
            assert machine.exec("cat", "/data/file").stdout == "kept\n"
            machine.stop(0)
        for file in (home / "volumes/kept-by-test").iterdir():
            file.unlink()
        (home / "volumes/kept-by-test").rmdir()

    def test_it_says_what_is_wrong_before_anything_is_started(self, image: str) -> None:
        with pytest.raises(vch.UsageError, match="no_such"):
            vch.Machine(image, no_such=1)  # type: ignore[call-arg]
        with pytest.raises(vch.UsageError, match="invalid size"):
            vch.Machine(image, memory="much")
        with pytest.raises(vch.UsageError, match="does not run"):
            vch.Machine(image).exec("true")


class TestExamples:
    def run(self, name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, EXAMPLES / name, *words], capture_output=True, text=True, check=False,
                              timeout=SECONDS)

    def test_hello(self, image: str, tmp_path: Path) -> None:
        done = self.run("hello.py", image, tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "11 /tmp/hello.py\n", "")
        assert (tmp_path / "hostname").read_text().strip()

    def test_sandbox(self, image: str, tmp_path: Path) -> None:
        program = tmp_path / "program"
        program.write_text("echo working; echo result > made; rm /etc/group; exit 5\n")
        done = self.run("sandbox.py", image, program, tmp_path / "out")
        assert done.stderr == ""
        assert done.returncode == 5
        lines = done.stdout.splitlines()
        assert lines[0] == "working"
        assert {"A /work/made", "D /etc/group"} <= set(lines)
        assert (tmp_path / "out/made").read_text() == "result\n"


def test_options_become_words() -> None:
    given = {"read_only": True, "memory": "1g", "env": {"A": "b"}, "volume": ["a:/a", "/b"], "user": None, "cpus": 2}
    assert option_words(given) == ["--read-only=true", "--memory=1g", "--env=A=b", "--volume=a:/a", "--volume=/b",
                                   "--cpus=2"]
