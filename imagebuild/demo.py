"""The demo image: three layers around Debian's busybox, made on this machine without root and without a registry.

    python -m imagebuild.demo [DIRECTORY]

writes an OCI image layout, into the state folder unless told otherwise, and prints how to refer to it.  The layers do
what layers of real images do: the first brings the programs, the second configuration and a program of its own, the
third removes a file of the first and adds one.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from imagebuild.boot.deb import unpack_deb
from imagebuild.errors import OperationError
from imagebuild.home import home
from imagebuild.oci.compose import LayerTar, write_layout

PACKAGE = "busybox-static"
BUSYBOX = "bin/busybox"
TAG = "demo"
DOWNLOAD_SECONDS = 120  # one package of 1 MB; a mirror that takes longer is not going to answer
APPLETS = (
    "ash awk base64 basename cat chmod chown cksum clear cp cut date dd df diff dirname dmesg du echo ed env expr "
    "false find fold free grep gunzip gzip head hexdump hostname id ifconfig ip kill killall less ln ls md5sum mkdir "
    "mkfifo mknod mktemp more mount mv nc netstat nl nproc nslookup od passwd ping pgrep pidof printf ps pwd readlink "
    "realpath rm rmdir route sed seq sha1sum sha256sum sh sleep sort split stat strings stty su sync sysctl tac tail "
    "tar tee telnet test time timeout top touch tr true truncate tty umount uname uniq uptime usleep vi wc wget which "
    "whoami xargs yes zcat"
).split()

HELLO = b"""#!/bin/sh
# What the demo image says: where it runs, in its own words.
echo "Hello from a container that is a virtual machine."
echo
printf '  kernel     %s\\n' "$(uname -sr)"
printf '  host name  %s\\n' "$(hostname)"
printf '  memory     %s MiB\\n' "$(free -m | awk '/^Mem/ {print $2}')"
printf '  root       %s\\n' "$(awk '$2 == "/" {print $3}' /proc/mounts | tail -n 1) of $(cat /etc/layers) layers"
printf '  address    %s\\n' "$(ip -4 -o addr show scope global | awk '{print $4}')"
printf '  processes  %s\\n' "$(ls -d /proc/[0-9]* | wc -l)"
"""


def demo_layers(busybox: bytes) -> list[bytes]:
    """The three layers as tars, for a statically linked busybox program."""
    base = LayerTar()
    for name in ("bin", "dev", "etc", "proc", "sys", "usr", "usr/bin", "var", "root"):
        base.directory(name, 0o700 if name == "root" else 0o755)
    base.directory("tmp", 0o1777).file("bin/busybox", busybox, 0o755)
    for applet in APPLETS:
        base.symlink(f"bin/{applet}", "busybox")
    base.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    base.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    base.file("etc/motd", b"this file is removed by a later layer\n")
    middle = LayerTar().directory("usr/bin").file("usr/bin/hello", HELLO, 0o755)
    top = LayerTar().directory("etc").whiteout("etc/motd").file("etc/layers", b"3\n")
    return [base.tar(), middle.tar(), top.tar()]


def fetch_busybox() -> bytes:
    """Debian's static busybox: the installed one, or from the package, which is downloaded but not installed."""
    installed = Path("/") / BUSYBOX
    if installed.is_file() and _is_static(installed):
        return installed.read_bytes()
    with tempfile.TemporaryDirectory(prefix="vch-demo-") as scratch:
        command = ["apt-get", "download", "-qq", PACKAGE]
        try:
            subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            cause = (getattr(error, "stderr", "") or str(error)).strip()
            raise OperationError("download", PACKAGE, cause, "run apt-get update and try again") from error
        package = next(Path(scratch).glob("*.deb"))
        unpack_deb(package, Path(scratch), lambda name: name if name == BUSYBOX else None)
        return (Path(scratch) / BUSYBOX).read_bytes()


def _is_static(program: Path) -> bool:
    """Whether the ELF names no program interpreter (it stands in the first page where there is one)."""
    return b"/ld-linux" not in program.read_bytes()[:4096]


def write_demo(directory: Path) -> None:
    """Makes the layout in `directory`; one that is there already is kept.  Whole or not at all."""
    if (directory / "index.json").exists():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=directory.name + ".", dir=directory.parent))
    try:
        write_layout(fresh, demo_layers(fetch_busybox()), {"Cmd": ["hello"], "Env": ["PATH=/usr/bin:/bin"]}, tag=TAG)
        with contextlib.suppress(OSError):  # somebody else made the same image meanwhile
            fresh.rename(directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m imagebuild.demo", description="write the demo image")
    parser.add_argument("directory", type=Path, nargs="?", default=home() / "demo", help="where to write it")
    directory = parser.parse_args().directory
    try:
        write_demo(directory)
    except OperationError as error:
        print(f"imagebuild.demo: {error}", file=sys.stderr)
        return 1
    print(f"oci:{directory}:{TAG}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
