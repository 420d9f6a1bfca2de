"""The command line as a user meets it: output, exit status, pipes, terminals and interrupts."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imagebuild.cli.disk import size_of
from imagebuild.cli.main import main, make_parser
from imagebuild.cli.output import age_text, plain, size_text
from tests.fake_registry import FakeRegistry, Fault, fake_registry
from tests.sample_images import old_docker_archive, some_layers, tar_of

Run = Callable[..., Any]
LAYERS = some_layers(3)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("VCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VCH_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; its standard output, parsed if ``--json`` is asked for."""

    def call(*words: str, status: int = 0) -> Any:
        capsys.readouterr()
        assert main(words) == status
        captured = capsys.readouterr()
        if status:
            return captured.err
        return json.loads(captured.out) if "--json" in words or words[0] == "inspect" else captured.out

    return call


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake_registry() as fake:
        yield fake


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "app.tar"
    path.write_bytes(old_docker_archive({"app:1": LAYERS}))
    return path


def _command(*words: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    options.setdefault("capture_output", True)
    return subprocess.run([sys.executable, "-m", "imagebuild.cli.main", *words], check=False, **options)


def test_from_a_registry_to_nothing_left(run: Run, registry: FakeRegistry) -> None:
    fake = registry.add_image("team/app", LAYERS, tag="1")
    name = f"{registry.address}/team/app:1"
    assert run("pull", "--platform", "linux/amd64", name) == f"{name} {fake.manifest_digest}\n"
    (row,) = run("ls", "--json")
    assert row["names"] == [name]
    assert row["layers"] == 3
    assert run("ls", "-q").strip() == row["id"]
    assert row["id"][7:19] in run("ls")
    run("tag", name, "short")
    (shown,) = run("inspect", "short")
    assert shown["names"] == [name, "short:latest"] or shown["names"] == ["short:latest", name]
    assert shown["origin"] == f"{registry.address}/team/app@{fake.manifest_digest}"
    assert [len(layer["diff_id"]) for layer in shown["layers"]] == [71] * 3
    assert "other names" not in run("rm", name)
    assert run("rm", "short", "--json")[0]["deleted"] == fake.manifest_digest
    assert run("ls", "--json") == []
    assert run("gc", "--json")["freed"] == 0


def test_load_save_history(run: Run, archive: Path, tmp_path: Path) -> None:
    assert run("load", "-i", str(archive)).startswith("docker.io/library/app:1 sha256:")
    history = run("history", "app:1", "--json")
    assert [row["created_by"] for row in history] == ["step 2", "step 1", "step 0"]
    assert [row["size"] for row in history] == [len(layer) for layer in reversed(LAYERS)]
    assert run("history", "app:1").startswith("LAYER")
    run("save", "-o", "saved.tar", "app:1")
    (before,) = run("inspect", "app:1")
    run("rm", "app:1")
    assert run("load", "-i", "saved.tar", "--json")[0]["digest"] == before["digest"]
    assert "all is well" in run("verify")
    assert run("du", "--json")["total"] > 60_000
    assert "app:1" in run("du")


def test_pipes(archive: Path, tmp_path: Path) -> None:
    loaded = _command("load", "-q", stdin=archive.open("rb"))
    assert loaded.returncode == 0
    assert loaded.stdout.startswith(b"sha256:")
    assert loaded.stderr == b""
    saved = _command("save", "app:1")
    again = _command("load", "--json", input=saved.stdout, env=os.environ | {"VCH_HOME": str(tmp_path / "second")})
    assert json.loads(again.stdout)[0]["reference"] == "docker.io/library/app:1"
    gone = subprocess.Popen([sys.executable, "-m", "imagebuild.cli.main", "ls"], stdout=subprocess.PIPE)
    assert gone.stdout is not None
    gone.stdout.close()
    assert gone.wait() in (0, 1)


def test_import_and_disks(run: Run, tmp_path: Path) -> None:
    (tmp_path / "rootfs.tar").write_bytes(tar_of({"file": b"x" * 100_000}))
    run("import", "rootfs.tar", "base:1", "-c", 'CMD ["sh"]')
    disk = Path(run("disk", "image", "base:1").strip())
    assert disk.read_text().startswith("# Disk DescriptorFile")
    assert len(run("disk", "layers", "base:1", "out").split()) == 1
    assert "is not empty" in run("disk", "layers", "base:1", "out", status=1)
    said = run("disk", "stream", "base:1", "one.vmdk")
    assert said == f"one.vmdk: {(tmp_path / 'one.vmdk').stat().st_size:,} bytes\n"
    run("disk", "new", "64M", "data.vmdk")
    assert (tmp_path / "data-flat.vmdk").stat().st_size == 64 << 20
    said = run("disk", "new", "64M", "data.vmdk", status=1)
    assert said == "imagebuild: make disk: data.vmdk: File exists (delete it first, or choose another name)\n"
    assert (tmp_path / "data-flat.vmdk").stat().st_size == 64 << 20
    run("disk", "delta", "data.vmdk", "child.vmdk")
    assert not (tmp_path / "data-flat.vmdk").stat().st_mode & 0o222
    assert "is not made of flat files" in run("disk", "stream", "child.vmdk", "two.vmdk", status=1)
    assert "a file system has" in run("disk", "new", "4k", "small.vmdk", status=1)
    assert not (tmp_path / "small.vmdk").exists()


def test_an_image_that_lacks_a_layer_says_how_to_get_it_back(
    run: Run, tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("load", "-i", str(archive))
    victim = next((tmp_path / "home/images/layers").glob("*.erofs"))
    victim.unlink()
    for words in (["disk", "image", "app:1"], ["inspect", "app:1"], ["save", "-o", "x.tar", "app:1"]):
        said = run(*words, status=1)
        assert "1 of its 3 layers are not there (imagebuild pull app:1 brings them back)" in said
    assert main(["ls"]) == 0
    assert "app:1 lacks layers (imagebuild pull app:1 brings them back)" in capsys.readouterr().err


def test_a_bad_layer_is_named(run: Run, registry: FakeRegistry) -> None:
    image = registry.add_image("bad", [LAYERS[0], LAYERS[1][:1000]])
    said = run("pull", f"{registry.address}/bad", status=1)
    digest = json.loads(image.manifest)["layers"][1]["digest"]
    assert f"read the tar archive: layer {digest}: byte " in said


def test_a_push_needs_a_place(run: Run, archive: Path) -> None:
    spelled = f"docker-archive:{archive}"
    run("pull", spelled)
    [image] = run("ls", "--json")
    for name in (image["id"], image["id"][7:19]):
        assert f"(say where: imagebuild push {name} registry.example.com/name:tag)" in run("push", name, status=1)


def test_output_that_cannot_be_written_is_not_the_stores_fault(run: Run, archive: Path) -> None:
    run("load", "-i", str(archive))
    said = run("save", "-o", "nowhere/x.tar", "app:1", status=1)
    assert said.endswith("No such file or directory (make the folder first)\n")


def test_errors_are_one_sentence(run: Run, registry: FakeRegistry) -> None:
    assert run("pull", "Bad Name", status=1).startswith("imagebuild: parse image name: Bad Name: ")
    assert run("rm", "nothing", status=1).count("\n") == 1
    assert "there is no such image" in run("inspect", "nothing", status=1)
    assert "there is no such image" in run("push", "nothing", status=1)
    assert run("pull", f"{registry.address}/nothing", status=1).count("\n") == 1
    assert "a name with a digest" in run("tag", "a", f"a@sha256:{'0' * 64}", status=1)
    assert "cannot be a folder" in run("save", "--format", "oci", *_some_image(run), status=1)


def _some_image(run: Run) -> list[str]:
    Path("rootfs.tar").write_bytes(tar_of({"file": b"x"}))
    run("import", "rootfs.tar", "some:1")
    return ["some:1"]


def test_settings_that_are_wrong_are_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[images]\nkeep = true\n")
    assert "there is no setting images.keep" in run("pull", "busybox", status=1)


@pytest.mark.parametrize(
    "words", [[], ["nonsense"], ["pull"], ["disk", "new", "tiny", "x.vmdk"], ["pull", "--policy=x", "a"]]
)
def test_a_wrong_command_line_is_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: imagebuild" in capsys.readouterr().err


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    commands = "pull push load save import ls inspect history tag rm gc du verify disk initramfs".split()
    for command in commands:
        with pytest.raises(SystemExit) as caught:
            make_parser().parse_args([command, "--help"])
        assert caught.value.code == 0
        assert f"example:\n  imagebuild {command}" in capsys.readouterr().out


def test_damage_is_reported_and_repaired(run: Run, archive: Path) -> None:
    run("load", "-i", str(archive))
    (shown,) = run("inspect", "app:1")
    path = Path(shown["layers"][0]["path"])
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert main(["verify"]) == 1
    assert run("verify", "--repair", "--json")[0]["cause"] == "its content has changed"
    assert not path.exists()
    run("load", "-i", str(archive))
    assert run("verify", "--json") == []


def test_bars_are_drawn_on_a_terminal_only(registry: FakeRegistry) -> None:
    registry.add_image("app", some_layers(3, 300_000))
    words = ["pull", "--platform=linux/amd64", f"{registry.address}/app"]
    assert _command(*words).stderr == b""
    _command("rm", f"{registry.address}/app")
    main_end, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "imagebuild.cli.main", *words],
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(main_end, 65536)
        except OSError:
            break
    assert child.wait() == 0
    os.close(main_end)
    assert b"total" in shown


def test_ctrl_c_is_130(registry: FakeRegistry) -> None:
    registry.add_image("app", LAYERS)
    registry.fail("GET", "/manifests/", Fault.STALL, times=9)
    command = [sys.executable, "-m", "imagebuild.cli.main", "pull", f"{registry.address}/app"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not registry.count("GET", "/manifests/"):
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=100)[1].endswith(b"imagebuild: interrupted\n")
    assert child.returncode == 130


def test_texts() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 1550, 99_950, 135_000_000, 10**13)] == [
        "0 B", "999 B", "1 kB", "1.55 kB", "100 kB", "135 MB", "10 TB",
    ]  # fmt: skip
    assert age_text("") == age_text("nonsense") == ""
    assert age_text("1970-01-01T00:00:00.123456789Z").endswith("years")
    assert plain("a\x1b[31m\nb") == "a [31m b"
    assert [size_of(t) for t in ("1024", "1k", "8G", "2TiB", "3mb")] == [1024, 1024, 8 << 30, 2 << 40, 3 << 20]
