"""Options of `vch run` that change the machine: memory, processors, disks, volumes, network, identity."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.vm.conftest import RUN_SECONDS, VCH, Vch
from tests.vm.run_helpers import STEP_SECONDS, tcp_port, until_line

pytestmark = pytest.mark.vm


@pytest.fixture
def image(demo_layout: Path) -> str:
    return f"oci:{demo_layout}:demo"


def lines(run: subprocess.CompletedProcess[bytes]) -> list[str]:
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout.decode().splitlines()


def udp_port() -> int:
    """One that is free now: of UDP's none can be kept for somebody else."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_environment_user_folder_and_names(vch: Vch, image: str) -> None:
    script = "echo $A $B $HOME $PATH; id -u; id -g; pwd; hostname; cat /etc/hostname; grep db /etc/hosts"
    inside = ("-e", "A=1", "-e", "B=two words", "-u", "nobody", "-w", "/made/here")
    names = ("-h", "web.example", "--add-host", "db:1.2.3.4")
    found = lines(vch("run", *inside, *names, image, "sh", "-c", script))
    assert found[0] == "1 two words / /usr/bin:/bin"
    assert found[1:6] == ["65534", "65534", "/made/here", "web.example", "web.example"]
    assert found[6].split() == ["1.2.3.4", "db"]


def test_bytes_that_are_no_text(vch: Vch, image: str) -> None:
    word = b"\xff\xfe\n\t'"
    run = vch("run", "-e", os.fsdecode(b"X=" + word), image, "sh", "-c", 'printf %s "$0$X"', os.fsdecode(word))
    assert run.stdout == word + word


def test_memory_and_processors(vch: Vch, image: str) -> None:
    script = "nproc; free -m | awk '/^Mem/ {print $2}'"
    found = lines(vch("run", "-m", "400m", "--cpus", "1.5", image, "sh", "-c", script))
    assert found[0] == "2"
    assert 300 < int(found[1]) <= 400


def test_least_memory_is_enough(vch: Vch, image: str) -> None:
    assert vch("run", "-m", "96m", image, "true").returncode == 0


def test_read_only_root_with_writable_places(vch: Vch, image: str) -> None:
    script = "touch /x; touch /t/x /v/x && echo written; grep -c ' /t tmpfs rw,.*size=1024k' /proc/mounts"
    run = vch("run", "--read-only", "--tmpfs", "/t:size=1m", "-v", "/v", image, "sh", "-c", script)
    assert lines(run) == ["written", "1"]
    assert b"Read-only file system" in run.stderr


def test_a_named_volume_keeps_its_content(vch: Vch, image: str) -> None:
    write = "cat /etc/layers; dd if=/dev/urandom of=/etc/big bs=1M count=30; sha256sum < /etc/big"
    read = ("sh", "-c", "sha256sum < /mnt/big")
    seeded, digest = lines(vch("run", "-v", "kept:/etc", image, "sh", "-c", write))
    assert seeded == "3"  # an empty volume gets what the image has there
    assert lines(vch("run", "-v", "kept:/mnt:ro", image, *read)) == [digest]
    refused = vch("run", "-v", "kept:/mnt:ro", image, "touch", "/mnt/x")
    assert b"Read-only file system" in refused.stderr
    process = vch.start("run", "-v", "kept:/mnt", image, "sh", "-c", "echo up; sleep 1000")
    until_line(process, b"up\n")
    second = vch("run", "-v", "kept:/mnt", image, "true")
    assert (second.returncode, b'volume name "kept": already in use' in second.stderr) == (125, True)
    process.kill()  # as a power cut
    process.communicate()
    assert lines(vch("run", "-v", "kept:/mnt", image, *read)) == [digest]


def test_an_address_a_route_and_names(vch: Vch, image: str, tmp_path: Path) -> None:
    script = "ip -4 -o addr show eth0; ip route; cat /etc/resolv.conf"
    found = "\n".join(lines(vch("run", image, "sh", "-c", script)))
    assert "10.0.2.15/24" in found
    assert "default via 10.0.2.2" in found
    assert re.search(r"^nameserver 10\.0\.2\.3$", found, re.MULTILINE)


def test_no_network(vch: Vch, image: str) -> None:
    assert lines(vch("run", "--network", "none", image, "sh", "-c", "ls /sys/class/net; ip route")) == ["lo"]


def test_the_host_is_reached_as_a_gateway(vch: Vch, image: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = vch.start("run", "--add-host", "me:host-gateway", image, "sh", "-c", f"nc me {port} < /etc/layers")
        server.settimeout(RUN_SECONDS)
        with server.accept()[0] as peer:
            assert peer.recv(100) == b"3\n"
        process.terminate()
        process.communicate(timeout=RUN_SECONDS)


SERVICE = """
import socket, threading
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", 53))
def answer():
    while True:
        data, peer = udp.recvfrom(100)
        udp.sendto(data.upper(), peer)
threading.Thread(target=answer, daemon=True).start()
tcp = socket.create_server(("", 80))
print("up", flush=True)
while True:
    peer, _ = tcp.accept()
    peer.sendall(b"served\\n")
    peer.close()
"""


def test_published_ports(vch: Vch, python_image: str, image: str) -> None:
    udp = udp_port()
    with tcp_port() as tcp:
        words = ("-p", f"127.0.0.1:{tcp}:80", "-p", f"127.0.0.1:{udp}:53/udp", python_image)
        process = vch.start("run", *words, "python3", "-c", SERVICE)
        try:
            until_line(process, b"up\n")
            assert ask_tcp(tcp) == b"served\n"
            assert ask_udp(udp) == b"HELLO\n"
            busy = vch("run", "-p", f"127.0.0.1:{tcp}:80", image, "true")
            assert busy.returncode == 125
            assert f"publish port: 127.0.0.1:{tcp}/tcp: Address already in use".encode() in busy.stderr
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=RUN_SECONDS)


def ask_tcp(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), STEP_SECONDS) as peer:
        return peer.recv(100)


def ask_udp(port: int) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(2)
        deadline = time.monotonic() + STEP_SECONDS
        while time.monotonic() < deadline:
            peer.sendto(b"hello\n", ("127.0.0.1", port))
            try:
                return peer.recv(100)
            except TimeoutError:
                continue
        return b""


def test_image_policies(vch: Vch, image: str) -> None:
    run = vch("run", "--pull", "never", "127.0.0.1:1/none:1", "true")
    assert (run.returncode, b"not in the store" in run.stderr) == (125, True)
    run = vch("run", "127.0.0.1:1/none:1", "true")
    assert run.returncode == 125
    assert b"127.0.0.1:1" in run.stderr
    assert b"Traceback" not in run.stderr
    assert vch("run", "oci:/nowhere:x", "true").returncode == 125


def test_timing_is_told(vch: Vch, image: str) -> None:
    run = vch("run", "--timing", image, "true")
    assert re.search(rb"^vch: prepare .* boot .* start .* run .* total [0-9.]+ s$", run.stderr, re.MULTILINE)


def test_the_boot_chart_is_told_and_drawn(vch: Vch, image: str, tmp_path: Path) -> None:
    run = vch("run", "--cold", "--profile", "--profile-file", str(tmp_path / "boot.svg"), image, "echo", "x")
    assert run.stdout == b"x\n"
    told = dict(re.findall(rb"^([a-z ,A-Z]+?)  +\w+ +\d+ +([0-9.]+)$", run.stderr, re.MULTILINE))
    for name in (b"QEMU and firmware", b"kernel", b"start interpreter", b"import agent", b"mount layers",
                 b"configure network", b"start session", b"first output"):
        assert 0 <= float(told[name]) < 60_000, (name, run.stderr)
    assert float(told[b"kernel"]) > 0
    assert b"</svg>" in (tmp_path / "boot.svg").read_bytes()


def test_version_and_help(vch: Vch) -> None:
    assert vch("version").stdout.startswith(b"vch ")
    assert vch("--version").stdout == vch("version").stdout
    assert b"Examples:" in vch("run", "--help").stdout
    bad = vch("run", "--nope", "x")
    assert (bad.returncode, bad.stderr) == (125, b"vch: unknown flag: --nope\nSee 'vch run --help'.\n")
    assert vch("frob").returncode == 125


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_full_host_is_waited_for_and_nothing_is_lost(vch: Vch, image: str, tmp_path: Path) -> None:
    """The state folder is on a file system that somebody else fills, and empties again."""
    vch("run", image, "true")
    small = tmp_path / "small"
    small.mkdir()
    # A state folder that is used for long has boot images of many versions.
    folders = [vch.home / name for name in ("kernels", "initramfs") if (vch.home / name).exists()]
    taken = sum(path.lstat().st_size for folder in folders for path in folder.rglob("*")) >> 20
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={taken + 450}m", "none", small], check=True)
    try:
        for folder in folders:
            subprocess.run(["cp", "-a", folder, small], check=True)
        script = "echo up; read go; dd if=/dev/urandom of=/big bs=1M count=100; sync; sha256sum < /big; " \
                 "echo 3 > /proc/sys/vm/drop_caches; sha256sum < /big"
        environ = {**os.environ, "VCH_HOME": str(small)}
        command = [str(VCH), "run", "-i", image, "sh", "-c", script]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            until_line(process, b"up\n")
            assert process.stdin is not None
            assert process.stderr is not None
            free = os.statvfs(small)
            with (small / "fill").open("wb") as fill:
                os.posix_fallocate(fill.fileno(), 0, free.f_bavail * free.f_frsize - (40 << 20))
            process.stdin.write(b"go\n")
            process.stdin.flush()
            assert process.stderr.readline() == b"vch: the host's disk is full: the machine waits up to 30 s for room\n"
            (small / "fill").unlink()
            out, _ = process.communicate(timeout=RUN_SECONDS)
        digests = out.split(b"\n")
        assert (process.returncode, digests[0]) == (0, digests[1])
    finally:
        subprocess.run(["umount", small], check=True)


def test_names_are_resolved_by_the_hosts_resolver(vch: Vch, image: str) -> None:
    name = "deb.debian.org"
    try:
        addresses = socket.gethostbyname_ex(name)[2]
    except OSError:
        pytest.skip(f"the host does not resolve {name}")
    found = "\n".join(lines(vch("run", image, "nslookup", name)))
    assert any(address in found for address in addresses), (addresses, found)
