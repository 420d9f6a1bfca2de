"""Options about the process itself, read and merged as Docker does.  Docker's own command line is a judge, if there."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from imagebuild.oci.imageconfig import Healthcheck, RunConfig
from tether.spec import CAPABILITIES, HealthCheck, Identity, Limit, Restart
from vch.errors import UsageError
from vch.options.process_values import DEFAULT_CAPABILITIES, parse_duration
from vch.options.run_options import RunOptions, parse_run
from vch.options.spec_plan import Placement, build_spec, health_check

IMAGE = RunConfig(env=(), entrypoint=None, cmd=("sh",), user="", working_dir="", stop_signal="", volumes=(),
                  exposed_ports=(), labels={}, healthcheck=None, shell=None)


def run(*words: str) -> RunOptions:
    return parse_run((*words, "image"), {})


def complaint(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        run(*words)
    return str(caught.value)


class TestCapabilities:
    def test_dockers_set_is_the_default(self) -> None:
        assert run().capabilities == DEFAULT_CAPABILITIES
        assert len(DEFAULT_CAPABILITIES) == 14

    @pytest.mark.parametrize("given", ["NET_ADMIN", "CAP_NET_ADMIN", "net_admin", "cap_net_admin"])
    def test_add(self, given: str) -> None:
        assert run("--cap-add", given).capabilities == (*DEFAULT_CAPABILITIES, "NET_ADMIN")

    def test_drop(self) -> None:
        assert run("--cap-drop=KILL", "--cap-drop=sys_admin").capabilities == tuple(
            name for name in DEFAULT_CAPABILITIES if name != "KILL")

    def test_drop_all_and_add_some(self) -> None:
        assert run("--cap-drop", "all", "--cap-add", "CHOWN", "--cap-add", "chown").capabilities == ("CHOWN",)
        assert run("--cap-drop", "all").capabilities == ()

    def test_add_all_and_drop_some(self) -> None:
        assert run("--cap-add", "ALL", "--cap-drop", "SYS_BOOT").capabilities == tuple(
            name for name in CAPABILITIES if name != "SYS_BOOT")
        assert run("--cap-add", "ALL").capabilities is None

    def test_privileged_is_all_of_the_kernels(self) -> None:
        assert run("--privileged", "--cap-drop", "ALL").capabilities is None

    def test_no_capability(self) -> None:
        assert complaint("--cap-add", "fly").endswith('unknown capability: "fly"')


class TestLimits:
    @pytest.mark.parametrize(
        ("given", "limit"),
        [
            ("nofile=1024", Limit(name="nofile", soft=1024, hard=1024)),
            ("nofile=1:2", Limit(name="nofile", soft=1, hard=2)),
            ("core=-1", Limit(name="core", soft=-1, hard=-1)),
            ("stack=5:-1", Limit(name="stack", soft=5, hard=-1)),
        ],
    )
    def test_values(self, given: str, limit: Limit) -> None:
        assert run("--ulimit", given).limits == (limit,)

    def test_the_last_of_a_name_counts(self) -> None:
        assert [limit.soft for limit in run("--ulimit=cpu=1", "--ulimit=core=0", "--ulimit=cpu=3").limits] == [3, 0]


@pytest.mark.parametrize(
    ("given", "nanoseconds"),
    [("0", 0), ("1s", 10**9), ("1h2m3.5s", 3723_500_000_000), ("100ms", 10**8), (".5s", 5 * 10**8), ("1us", 1000),
     ("1µs", 1000), ("-2s", -2 * 10**9), ("+1m", 60 * 10**9), ("7ns", 7)],
)
def test_durations(given: str, nanoseconds: int) -> None:
    assert parse_duration(given) == nanoseconds


class TestOthers:
    def test_plain_ones(self) -> None:
        options = run("--group-add=audio", "--group-add", "33", "--oom-score-adj=-500", "--pid=private")
        assert (options.groups, options.oom_score_adj, options.own_pids) == (("audio", "33"), -500, True)
        assert not run("--pid", "host").own_pids

    @pytest.mark.parametrize(
        ("given", "wanted"),
        [("no-new-privileges", True), ("no-new-privileges:true", True), ("no-new-privileges=false", False),
         ("seccomp=unconfined", False), ("label:disable", False)],
    )
    def test_security(self, given: str, wanted: bool) -> None:
        assert run("--security-opt", given).no_new_privileges is wanted

    def test_a_profile_is_refused_rather_than_ignored(self) -> None:
        assert "not supported" in complaint("--security-opt", "seccomp=profile.json")

    @pytest.mark.parametrize(
        ("given", "policy"),
        [("no", None), ("", None), ("always", Restart(always=True)), ("unless-stopped", Restart(always=True)),
         ("on-failure", Restart()), ("on-failure:5", Restart(retries=5))],
    )
    def test_restart(self, given: str, policy: Restart | None) -> None:
        assert run("--restart", given).restart == policy

    @pytest.mark.parametrize(("given", "words"), [
        ("sometimes", "unknown policy 'sometimes'"), ("always:3", "can only be used with 'on-failure'"),
        ("on-failure:-1", "cannot be negative"),
    ])
    def test_restart_policies_that_the_daemon_refuses(self, given: str, words: str) -> None:
        assert words in complaint("--restart", given)

    def test_all_reach_the_spec(self) -> None:
        options = run("--group-add=a", "--ulimit=cpu=1", "--cap-drop=all", "--security-opt=no-new-privileges",
                      "--oom-score-adj=5", "--pid=private", "--restart=always", "--health-cmd=true")
        spec = build_spec(options, IMAGE, Placement(id="0" * 64, mac="02:00:00:00:00:01", layers=1),
                          Identity(entropy=b"", clock_ns=0))
        process = spec.process
        assert (process.groups, process.capabilities, process.no_new_privileges, process.oom_score_adj) == (
            ("a",), (), True, 5)
        assert process.limits == (Limit(name="cpu", soft=1, hard=1),)
        assert (spec.own_pids, spec.restart) == (True, Restart(always=True))
        assert spec.health == HealthCheck(args=(b"/bin/sh", b"-c", b"true"))


class TestHealth:
    OWN = Healthcheck(("CMD", "check", "-q"), 5_000_000_000, 0, 0, 7)

    def check(self, image: Healthcheck | None, *words: str, shell: tuple[str, ...] | None = None) -> HealthCheck | None:
        config = IMAGE._replace(healthcheck=image, shell=shell)
        return health_check(run(*words).health, config)

    def test_the_images(self) -> None:
        assert self.check(self.OWN) == HealthCheck(args=(b"check", b"-q"), interval_ms=5000, retries=7)
        assert self.check(None) is None

    @pytest.mark.parametrize("test", [(), ("NONE",), ("CMD",), ("WHAT", "x")])
    def test_none(self, test: tuple[str, ...]) -> None:
        assert self.check(Healthcheck(test, 0, 0, 0, 0)) is None

    def test_the_users_word_counts_more(self) -> None:
        found = self.check(self.OWN, "--health-cmd", "echo $X", "--health-timeout=1s", "--health-retries=2",
                           "--health-start-period=1m", "--health-start-interval=250ms")
        assert found == HealthCheck(args=(b"/bin/sh", b"-c", b"echo $X"), interval_ms=5000, timeout_ms=1000,
                                    start_period_ms=60_000, start_interval_ms=250, retries=2)
        assert self.check(self.OWN, "--no-healthcheck") is None

    def test_the_images_shell(self) -> None:
        found = self.check(Healthcheck(("CMD-SHELL", "x"), 0, 0, 0, 0), shell=("/bin/bash", "-ec"))
        assert found is not None
        assert found.args == (b"/bin/bash", b"-ec", b"x")


# What Docker's client refuses by itself, and what we say.  (The daemon refuses the rest: it is not asked here.)
REFUSED = [
    ("--ulimit", "foo"), ("--ulimit", "foo=1"), ("--ulimit", "nofile=a"), ("--ulimit", "nofile=2:1"),
    ("--ulimit", "nofile=-1:1"), ("--ulimit", "nofile=1:2:3"), ("--oom-score-adj", "x"), ("--security-opt", "foo"),
    ("--restart", "a:b"), ("--restart", ":"), ("--restart", "on-failure:x"), ("--rm", "--restart", "always"),
    ("--pid", "foo"), ("--health-interval", "5"), ("--health-interval", "x"), ("--health-interval=-1s",),
    ("--health-timeout=-1s",), ("--health-start-period=-1s",), ("--health-retries", "x"), ("--health-retries=-1",),
    ("--no-healthcheck", "--health-cmd", "x"), ("--privileged=x",),
]


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_refused_in_dockers_words(words: tuple[str, ...]) -> None:
    ours = complaint(*words)
    if not shutil.which("docker"):
        pytest.skip("Docker's command line is not installed")
    done = subprocess.run(["docker", "-H", "unix:///nowhere", "run", *words, "image"], capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 125
    theirs = done.stderr.splitlines()[0].removeprefix("docker: ")
    assert theirs in (ours, ours.partition(" flag: ")[2])
