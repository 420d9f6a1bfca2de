"""An NFS server for the tests: nfs-ganesha, NFS 3 and 4.0 to 4.2 over TCP, on ports of 127.0.0.1 or ::1.

Debian's packages are unpacked into the tests' cache, not installed: an installed one would start services.  The server
has a mount namespace of its own, so that its /run is a folder of ours, with an rpcbind in it that takes note of nothing
(without one, ganesha offers no NFS 3).  It needs no other daemon and writes nowhere else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.debian_image import cache_folder, making

# What the server needs beyond a minimal Debian; each is unpacked into the same tree.
PACKAGES = (
    "nfs-ganesha", "nfs-ganesha-vfs", "libntirpc4.3", "liburcu8", "libnfsidmap1", "libwbclient0", "libacl1",
    "libblkid1", "libcap2", "libcom-err2", "libdbus-1-3", "libgssapi-krb5-2", "libk5crypto3", "libkeyutils1",
    "libkrb5-3", "libkrb5support0", "liblz4-1", "liblzma5", "libsystemd0", "libuuid1", "libzstd1",
    "libgcrypt20", "libgpg-error0",
)  # fmt: skip
FETCH_SECONDS = 300
READY_SECONDS = 60  # it takes a fifth of a second when alone
STEP_SECONDS = 60
READY = "NFS SERVER INITIALIZED"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
# No attribute is kept (Attr_Expiration_Time): it is to show at once what a test changes on the host.
CONFIG = """
NFS_CORE_PARAM {{ NFS_Port = {port}; MNT_Port = {mount_port}; Bind_Addr = {address}; NFS_Protocols = 3, 4;
  Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; mount_path_pseudo = true; Plugins_Dir = "{plugins}"; }}
NFSv4 {{ Graceless = true; RecoveryBackend = fs; RecoveryRoot = "{folder}/state"; Minor_Versions = 0, 1, 2;
  Only_Numeric_Owners = true; UseGetpwnam = true; }}
EXPORT_DEFAULTS {{ Protocols = {versions}; Transports = TCP; SecType = sys; Squash = No_Root_Squash;
  PrivilegedPort = false; Attr_Expiration_Time = 0; }}
EXPORT {{ Export_Id = 1; Path = "{share}"; Pseudo = "/rw"; Access_Type = RW; FSAL {{ Name = VFS; }} }}
EXPORT {{ Export_Id = 2; Path = "{share}"; Pseudo = "/ro"; Access_Type = RO; FSAL {{ Name = VFS; }} }}
"""


class CannotServe(Exception):
    """This machine cannot run the server; the text says why (tests skip with it)."""


def unpacked() -> Path:
    """The tree with the server's programs, fetched with apt-get when it is not in the cache.  Raises CannotServe."""
    key = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:16]
    tree = cache_folder() / f"nfs-ganesha-{key}"
    if (tree / "usr/bin/ganesha.nfsd").exists():
        return tree
    for program in ("apt-get", "dpkg"):
        if not shutil.which(program):
            raise CannotServe(f"{program} is not installed: Debian's nfs-ganesha cannot be unpacked")
    with making(tree) as scratch:
        if scratch is not None:
            scratch.chmod(0o755)  # apt's own user writes to it
            fresh = scratch / "tree"
            _run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *PACKAGES], scratch)
            for package in scratch.glob("*.deb"):
                _run(["dpkg", "-x", str(package), str(fresh)], scratch)
            fresh.rename(tree)
    return tree


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
    if done.returncode:
        raise CannotServe(f"{' '.join(command[:2])} failed (apt-get update?): {done.stderr[-300:]}")


class NfsServer:
    """The server, which exports the folder `share` as /rw and, not to be written to, /ro.  Use it in a with statement.

    `versions` are those that the exports have.  Raises CannotServe.
    """

    def __init__(self, share: Path, address: str = "127.0.0.1", versions: str = "3, 4") -> None:
        if os.geteuid() != 0:
            raise CannotServe("an NFS server of files, with a /run of its own, needs root")
        self.share, self.address = share, address
        self.folder = Path(tempfile.mkdtemp(prefix="vch-tests-nfs-"))
        self.port, self.mount_port = _free_ports(address)
        self._rpcbind = socket.socket(socket.AF_UNIX)
        try:
            self._process = self._begin(unpacked(), versions)
        except BaseException:
            self._forget()
            raise
        self._until_ready()

    def __enter__(self) -> NfsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends it.  SIGKILL: it has nothing to save, and would take two seconds for a proper end."""
        self._process.kill()
        self._process.wait(STEP_SECONDS)
        self._forget()

    def stop(self) -> None:
        """It does not answer from now on."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers again."""
        self._process.send_signal(signal.SIGCONT)

    def clients(self) -> int:
        """How many clients of NFS 4 it knows."""
        return sum(entry.name.startswith("::ffff:") for entry in (self.folder / "state/v4recov").glob("*/*"))

    def options(self, version: str, address: str = "10.0.2.2") -> str:
        """What nfs(5) calls options, to mount with this version where the host has this address."""
        three = f",mountport={self.mount_port},nolock" if version == "3" else ""
        return f"addr={address},nfsvers={version},port={self.port}{three}"

    def _begin(self, tree: Path, versions: str) -> subprocess.Popen[bytes]:
        run = self.folder / "run"
        for folder in (run, self.folder / "state"):
            folder.mkdir()
        self._rpcbind.bind(str(run / "rpcbind.sock"))
        self._rpcbind.listen()
        threading.Thread(target=_be_rpcbind, args=(self._rpcbind,), daemon=True).start()
        (self.folder / "config").write_text(CONFIG.format(
            port=self.port, mount_port=self.mount_port, address=self.address, share=self.share, folder=self.folder,
            plugins=tree / LIBRARIES / "ganesha", versions=versions,
        ))  # fmt: skip
        server = [str(tree / "usr/bin/ganesha.nfsd"), "-F", "-N", "EVENT"]
        for option, name in (("-f", "config"), ("-L", "log"), ("-p", "pid")):
            server += [option, str(self.folder / name)]
        own_run = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /run && exec "$@"', str(run)]
        libraries = f"{tree / LIBRARIES}:{tree / 'lib/x86_64-linux-gnu'}:{tree / 'usr/lib/ganesha'}"
        with (self.folder / "errors").open("wb") as errors:
            return subprocess.Popen([*own_run, *server], env={**os.environ, "LD_LIBRARY_PATH": libraries},
                                    stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)  # fmt: skip

    def _until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while READY not in (said := self._said("log")):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said += self._said("errors")
                self.close()
                raise CannotServe(f"nfs-ganesha does not start here: {said[-500:]}")
            time.sleep(0.02)

    def _said(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else ""

    def _forget(self) -> None:
        with suppress(OSError):  # it never listened
            self._rpcbind.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._rpcbind.close()
        shutil.rmtree(self.folder)


class MuteServer:
    """Takes every connection and answers nothing."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Ends it; connections end with their peers."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        kept = []
        while True:
            try:
                kept.append(self._listener.accept()[0])
            except OSError:
                return


def _free_ports(address: str) -> tuple[int, int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.create_server((address, 0), family=family) as one, \
                socket.create_server((address, 0), family=family) as other:  # fmt: skip
            return one.getsockname()[1], other.getsockname()[1]
    except OSError as error:
        raise CannotServe(f"this host has no address {address}: {error.strerror}") from error


def _be_rpcbind(listener: socket.socket) -> None:
    """Says yes to every call (RFC 5531, one fragment each), as rpcbind does to SET and UNSET."""

    def serve(peer: socket.socket) -> None:
        with peer, peer.makefile("rwb") as file:
            while len(head := file.read(4)) == 4:
                call = file.read(struct.unpack(">I", head)[0] & 0x7FFFFFFF)
                answer = call[:4] + struct.pack(">6I", 1, 0, 0, 0, 0, 1)
                file.write(struct.pack(">I", 1 << 31 | len(answer)) + answer)
                file.flush()

    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(peer,), daemon=True).start()
