"""The command line of `vch run`, read as Docker reads it."""

from pathlib import Path

import pytest
from hypothesis import given as given_by
from hypothesis import strategies as st

from vch.errors import UsageError
from vch.options import pflag
from vch.options.run_options import FLAGS, RunOptions, parse_run
from vch.options.values import TmpfsMount, VolumeMount
from vch.ports import Published

HOST = {"HOME": "/home/me", "EMPTY": ""}


def run(*words: str) -> RunOptions:
    return parse_run(words, HOST)


def complaint(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        run(*words)
    return str(caught.value)


def test_options_end_at_the_image() -> None:
    options = run("-i", "alpine", "sh", "-c", "exit 3", "--rm", "-t")
    assert options.image == "alpine"
    assert options.command == ("sh", "-c", "exit 3", "--rm", "-t")
    assert options.interactive
    assert not options.tty


def test_double_dash_ends_options() -> None:
    assert run("-t", "--", "-odd", "x").image == "-odd"


def test_a_lone_dash_is_no_option() -> None:
    assert run("-").image == "-"


@pytest.mark.parametrize("words", [("-it",), ("-i", "-t"), ("-ti",), ("--interactive", "--tty"), ("-i=T", "--tty=1")])
def test_switches_combine(words: tuple[str, ...]) -> None:
    options = run(*words, "x")
    assert (options.interactive, options.tty) == (True, True)


def test_switches_can_be_taken_back() -> None:
    assert not run("-t", "--tty=false", "x").tty


@pytest.mark.parametrize("words", [("-e", "A=b=c"), ("-eA=b=c",), ("-e=A=b=c",), ("--env", "A=b=c"), ("--env=A=b=c",)])
def test_ways_to_give_a_value(words: tuple[str, ...]) -> None:
    assert run(*words, "x").env == ("A=b=c",)


def test_value_after_combined_switches() -> None:
    assert run("-ite", "A=b", "x").env == ("A=b",)
    assert run("-iteA=b", "x").env == ("A=b",)


def test_env_from_the_caller() -> None:
    assert run("-e", "HOME", "-e", "EMPTY", "-e", "NONE", "x").env == ("HOME=/home/me", "EMPTY=", "NONE")


def test_env_file(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("\ufeff# comment\n\n  A=1\nHOME\nNONE\nB= two words \r\nEMPTY=\n")
    from_file = ("A=1", "HOME=/home/me", "B= two words ", "EMPTY=")
    assert run("-e", "A=2", "--env-file", str(path), "x").env == (*from_file, "A=2")
    path.write_text("a b=c\n")
    assert "variable 'a b' contains whitespaces" in complaint("--env-file", str(path), "x")
    assert "no such file or directory" in complaint("--env-file", str(tmp_path / "gone"), "x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nope", "x"), "unknown flag: --nope"),
        (("-Z", "x"), "unknown shorthand flag: 'Z' in -Z"),
        (("-iZt", "x"), "unknown shorthand flag: 'Z' in -Zt"),
        (("-e",), "flag needs an argument: 'e' in -e"),
        (("--env",), "flag needs an argument: --env"),
        (("--=x", "x"), "bad flag syntax: --=x"),
        (("--rm=x", "x"), 'invalid argument "x" for "--rm" flag: strconv.ParseBool: parsing "x": invalid syntax'),
        (("-m", "12q", "x"), "invalid argument \"12q\" for \"-m, --memory\" flag: invalid size: '12q'"),
        (("-e", "=x", "x"), 'invalid argument "=x" for "-e, --env" flag: invalid environment variable: =x'),
        (("--network", "host", "x"), 'invalid argument "host" for "--network" flag: must be one of user, none'),
        (("--sysctl", "net.core.somaxconn", "x"), "for \"--sysctl\" flag: sysctl 'net.core.somaxconn' is not allowed"),
        (("-w", "tmp", "x"), "needs to be an absolute path"),
        (("--dns", "one", "x"), "one is not an ip address"),
        (("--add-host", "a", "x"), 'bad format for add-host: "a"'),
        (("--stop-signal", "NOPE", "x"), "invalid signal: NOPE"),
        (("--name", "-a", "x"), "Invalid container name (-a)"),
        (("-v", "/etc:/etc", "x"), "folders of the host cannot be mounted"),
        (("-v", "aa:b", "x"), "mount path must be absolute"),
        (("-v", "aa:/", "x"), "destination can't be '/'"),
        (("-v", "aa:/b:wx", "x"), "invalid mode: wx"),
        (("-v", "aa:/b", "--tmpfs", "/b/", "x"), "Duplicate mount point: /b"),
        (("--tmpfs", "/t:size=x", "x"), 'invalid tmpfs option ["size=x"]'),
        (("-p", "80:x", "x"), "invalid containerPort: x"),
        (("-p", "70000:80", "x"), "invalid hostPort: 70000"),
        (("-p", "1-3:1-2", "x"), "invalid ranges"),
        (("-p", "80:80/sctp", "x"), "invalid proto: sctp"),
        (("-p", "1.2.3:80:80", "x"), "invalid IP address: 1.2.3"),
        (("-p", "80:80", "--network", "none", "x"), "conflicting options"),
        ((), "requires at least 1 argument"),
        (("-t",), "requires at least 1 argument"),
        (("",), "invalid reference format"),
    ],
)
def test_complaints(words: tuple[str, ...], message: str) -> None:
    assert message in complaint(*words)


def test_help() -> None:
    with pytest.raises(pflag.HelpRequested):
        run("--help")
    assert run("-h", "name", "x").hostname == "name"  # -h is the host name, as with Docker


@pytest.mark.parametrize(
    ("text", "size"),
    [("512m", 512 << 20), ("2g", 2 << 30), ("1.5G", 3 << 29), ("64MiB", 64 << 20), ("100", 100), ("1 kb", 1024)],
)
def test_sizes(text: str, size: int) -> None:
    assert run("-m", text, "x").memory == size


@pytest.mark.parametrize(("text", "count"), [("1", 1), ("1.5", 2), (".5", 1), ("4.0", 4), ("0", None)])
def test_cpus(text: str, count: int | None) -> None:
    assert run("--cpus", text, "x").cpus == count


@pytest.mark.parametrize(("text", "number"), [("TERM", 15), ("sigkill", 9), ("RTMIN+3", 37), ("RTMAX-1", 63)])
def test_signals(text: str, number: int) -> None:
    assert run("--stop-signal", text, "x").stop_signal == number


def test_ports() -> None:
    given = ("80", "8080:80", "127.0.0.1:53:53/udp", "7-8:17-18", "127.0.0.1::9")
    options = run(*(word for one in given for word in ("-p", one)), "x")
    assert options.ports == (
        Published("tcp", "0.0.0.0", 0, 80),
        Published("tcp", "0.0.0.0", 8080, 80),
        Published("udp", "127.0.0.1", 53, 53),
        Published("tcp", "0.0.0.0", 7, 17),
        Published("tcp", "0.0.0.0", 8, 18),
        Published("tcp", "127.0.0.1", 0, 9),
    )


def test_mounts() -> None:
    options = run("-v", "data:/d//e/:ro", "-v", "/an", "-v", "nn:/n:nocopy", "--tmpfs", "/t:size=1,exec,size=2m", "x")
    assert options.volumes == (
        VolumeMount("data", "/d/e", read_only=True),
        VolumeMount("", "/an"),
        VolumeMount("nn", "/n", no_copy=True),
    )
    assert options.tmpfs == (TmpfsMount("/t", "exec,nosuid,nodev,rw,size=2m"),)


def test_hosts() -> None:
    assert run("--add-host", "a:1.2.3.4", "--add-host", "b=::1", "--add-host", "c:host-gateway", "x").hosts == (
        ("a", "1.2.3.4"),
        ("b", "::1"),
        ("c", "host-gateway"),
    )


WORDS = st.one_of(
    st.text(max_size=8),
    st.builds(lambda f, v: f"--{f.name}={v}", st.sampled_from(FLAGS), st.text(max_size=8)),
    st.builds(lambda f: f"--{f.name}", st.sampled_from(FLAGS)),
    st.builds(lambda f, v: f"-{f.short or 'i'}{v}", st.sampled_from(FLAGS), st.text(max_size=8)),
)


@given_by(st.lists(WORDS, max_size=8))
def test_any_line_is_read_or_refused(words: list[str]) -> None:
    """Whatever is typed ends in options, help or a usage error."""
    try:
        options = run(*words)
    except (UsageError, pflag.HelpRequested):
        return
    assert options.image


@given_by(st.lists(st.text(min_size=1), min_size=1).filter(lambda words: not words[0].startswith("-")))
def test_the_command_is_never_touched(words: list[str]) -> None:
    options = run("-i", *words)
    assert (options.image, *options.command) == tuple(words)
