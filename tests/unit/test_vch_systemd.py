"""What an image gets whose command is an init system, and what the user's and the image's word changes of it."""


import pytest

from imagebuild.oci.imageconfig import RunConfig
from tether.spec import Identity, Spec
from vch.errors import UsageError
from vch.options.run_options import parse_run
from vch.options.spec_plan import Placement, build_spec, volume_mounts
from vch.options.systemd_mode import is_init

IMAGE = RunConfig(env=("PATH=/bin",), entrypoint=None, cmd=("/sbin/init",), user="", working_dir="", stop_signal="",
                  volumes=(), exposed_ports=(), labels={}, healthcheck=None, shell=None)
PLACEMENT = Placement("0123456789abcdef" * 4, "02:00:00:00:00:01", 1)
RTMIN_3 = 37


def spec(*words: str, image: RunConfig = IMAGE) -> Spec:
    return build_spec(parse_run(words, {}), image, PLACEMENT, Identity(entropy=b"", clock_ns=0))


def is_plain(made: Spec) -> bool:
    return (made.own_pids, made.tmpfs, made.process.env, made.stop_signal) == (False, (), (b"PATH=/bin",), 15)


@pytest.mark.parametrize(("command", "expected"), [
    ("/sbin/init", True), ("/usr/sbin/init", True), ("/lib/systemd/systemd", True), ("systemd", True),
    ("init", False), ("/opt/init", False), ("/bin/systemd-notify", False),
])
def test_which_commands_are_init_systems(command: str, expected: bool) -> None:
    assert is_init((command, "--log-level=debug")) == expected


def test_an_init_system_gets_what_it_wants() -> None:
    made = spec("x")
    assert made.own_pids
    assert [one.path for one in made.tmpfs] == [b"/run", b"/run/lock"]
    assert b"container=vch" in made.process.env
    assert b"container_uuid=01234567-89ab-cdef-0123-456789abcdef" in made.process.env
    assert made.stop_signal == RTMIN_3


def test_other_commands_and_other_wishes() -> None:
    assert is_plain(spec("x", "sh"))
    assert is_plain(spec("--systemd", "false", "x"))
    assert is_plain(spec("--pid", "host", "x"))
    assert spec("--systemd", "always", "x", "sh").own_pids
    assert spec("--pid", "private", "--systemd", "false", "x").own_pids


def test_what_the_image_and_the_user_say_counts_more() -> None:
    docker = IMAGE._replace(env=("container=docker",), stop_signal="SIGPWR", volumes=("/run/",))
    made = spec("x", image=docker)
    assert made.process.env[0] == b"container=docker"
    assert b"container=vch" not in made.process.env
    assert made.stop_signal == 30
    assert [one.path for one in made.tmpfs] == [b"/run/lock"]
    assert [mount.path for mount in volume_mounts(parse_run(("x",), {}), docker)] == ["/run"]
    said = spec("-e", "container=mine", "--stop-signal", "INT", "--tmpfs", "/run:size=1m", "x")
    assert b"container=mine" in said.process.env
    assert said.stop_signal == 2
    assert [one.options for one in said.tmpfs if one.path == b"/run"] == ["noexec,nosuid,nodev,rw,size=1m"]


def test_what_makes_no_sense() -> None:
    with pytest.raises(UsageError, match="--systemd always and --pid host"):
        spec("--systemd=always", "--pid=host", "x")
    with pytest.raises(UsageError, match="must be true, false or always"):
        spec("--systemd=sometimes", "x")
