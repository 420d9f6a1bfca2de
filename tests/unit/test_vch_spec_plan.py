"""Options and image config become a spec by Docker's rules."""


import pytest

from imagebuild.oci.imageconfig import RunConfig
from tether.spec import Host, Identity, Spec, Terminal, Verity
from vch.errors import UsageError
from vch.options.run_options import parse_run
from vch.options.spec_plan import Placement, Resolver, build_spec, merge_env, parse_resolver, volume_mounts

IMAGE = RunConfig(
    env=("PATH=/bin", "A=1", "B=2"),
    entrypoint=("/entry", "-x"),
    cmd=("serve",),
    user="app",
    working_dir="/srv",
    stop_signal="SIGINT",
    volumes=("/data", "/data/sub/"),
    exposed_ports=(),
    labels={},
    healthcheck=None,
    shell=None,
)
PLACEMENT = Placement("0123456789abcdef", "02:00:00:00:00:01", 2, Resolver(("corp.example",), ("ndots:2",)))
WHO = Identity(entropy=b"", clock_ns=0)


def spec(*words: str, image: RunConfig = IMAGE) -> Spec:
    return build_spec(parse_run(words, {}), image, PLACEMENT, WHO)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (("x",), (b"/entry", b"-x", b"serve")),
        (("x", "a", "b"), (b"/entry", b"-x", b"a", b"b")),
        (("--entrypoint", "sh", "x"), (b"sh",)),
        (("--entrypoint", "sh", "x", "-c", "1"), (b"sh", b"-c", b"1")),
        (("--entrypoint", "", "x", "ls"), (b"ls",)),
        (("x", "\udcff"), (b"/entry", b"-x", b"\xff")),
    ],
)
def test_arguments(words: tuple[str, ...], arguments: tuple[bytes, ...]) -> None:
    assert spec(*words).process.args == arguments


def test_no_command() -> None:
    with pytest.raises(UsageError, match="no command specified"):
        spec("--entrypoint", "", "x")
    with pytest.raises(UsageError, match="no command specified"):
        spec("x", image=IMAGE._replace(entrypoint=None, cmd=None))


def test_the_image_decides_what_the_user_does_not() -> None:
    plain = spec("x")
    assert plain.process.env == (b"PATH=/bin", b"A=1", b"B=2")
    assert (plain.process.user, plain.process.cwd, plain.stop_signal) == ("app", b"/srv", 2)
    assert not plain.process.stdin
    assert plain.process.terminal is None
    assert plain.network.hostname == "0123456789ab"


def test_the_user_decides() -> None:
    words = ("-i", "-u", "0:0", "-w", "/a/../b", "--stop-signal", "9", "-h", "web.example.org", "-e", "A=9", "-e", "B")
    other = spec(*words, "x")
    assert other.process.env == (b"PATH=/bin", b"A=9")
    assert (other.process.user, other.process.cwd, other.stop_signal) == ("0:0", b"/b", 9)
    assert other.process.stdin
    assert other.network.hostname == "web.example.org"


def test_a_relative_working_dir_of_the_image_is_taken_from_the_root() -> None:
    assert spec("x", image=IMAGE._replace(working_dir="app")).process.cwd == b"/app"


def test_terminal() -> None:
    sized = PLACEMENT._replace(terminal=Terminal(rows=50, columns=132))
    assert build_spec(parse_run(("-t", "x"), {}), IMAGE, sized, WHO).process.terminal == Terminal(rows=50, columns=132)
    assert spec("-t", "x").process.terminal == Terminal()
    assert build_spec(parse_run(("x",), {}), IMAGE, sized, WHO).process.terminal is None


def test_merge_env_keeps_places() -> None:
    assert merge_env(["A=1", "B=2", "A=3"], ["B=4", "C=5", "D", "C=6"]) == ["A=3", "B=4", "C=6"]


def test_volumes_of_the_image_give_way_and_parents_come_first() -> None:
    options = parse_run(("-v", "store:/data/sub", "-v", "/z", "-v", "aa:/data-2", "x"), {})
    assert [(mount.name, mount.path) for mount in volume_mounts(options, IMAGE)] == [
        ("", "/data"),
        ("store", "/data/sub"),
        ("aa", "/data-2"),
        ("", "/z"),
    ]
    covered = parse_run(("--tmpfs", "/data", "x"), {})
    assert [mount.path for mount in volume_mounts(covered, IMAGE)] == ["/data/sub"]
    assert [volume.disk.serial for volume in spec("x").volumes] == ["volume0", "volume1"]


def test_root_names_one_partition_a_layer() -> None:
    root = spec("--read-only", "x").root
    assert [(layer.disk.serial, layer.disk.partition) for layer in root.layers] == [("image", 1), ("image", 2)]
    assert root.read_only
    assert root.writable is not None


def test_checked_layers_say_what_they_must_be() -> None:
    hashes = (Verity(root_hash="a" * 64, data_size=4096), Verity(root_hash="b" * 64, data_size=8192))
    made = build_spec(parse_run(("x",), {}), IMAGE, PLACEMENT._replace(verity=hashes), WHO).root
    assert tuple(layer.verity for layer in made.layers) == hashes
    assert all(layer.verity is None for layer in spec("x").root.layers)


def test_of_a_kernel_parameter_the_last_value_counts() -> None:
    words = ("--sysctl", "kernel.sem=1 2", "--sysctl", "net.a=b=c", "--sysctl", "kernel.sem=3", "x")
    assert [(one.key, one.value) for one in spec(*words).sysctls] == [("kernel.sem", "3"), ("net.a", "b=c")]


def test_network() -> None:
    words = ("--add-host", "db:1.2.3.4", "--add-host", "me:host-gateway", "x")
    network = spec(*words).network
    assert network.hosts == (Host(address="1.2.3.4", names=("db",)), Host(address="10.0.2.2", names=("me",)))
    assert network.nameservers == ("10.0.2.3",)
    assert (network.search, network.resolver_options) == (("corp.example",), ("ndots:2",))
    assert network.interfaces[0].mac == PLACEMENT.mac
    assert spec("--dns", "9.9.9.9", "--dns-search", "a.b", "x").network.nameservers == ("9.9.9.9",)
    alone = spec("--network", "none", "x").network
    assert (alone.interfaces, alone.nameservers) == ((), ())


def test_parse_resolver() -> None:
    text = "# x\nnameserver 1.1.1.1\ndomain a\nsearch b c\noptions ndots:5 edns0\n"
    assert parse_resolver(text) == Resolver(("b", "c"), ("ndots:5", "edns0"))
    assert parse_resolver("search .\n") == Resolver()
