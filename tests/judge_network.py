"""A network of its own on this host, for a VM to be in: a network namespace with a tap device, and programs in it that
we did not write (dnsmasq, tcpdump, ping).

Namespaces belong to threads, so one is made in a thread that ends at once; what is kept is its descriptor.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

CLONE_NEWNET = 0x40000000  # linux/sched.h
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000  # linux/if_tun.h
TAP = "tap0"
HOST4, HOST6 = "10.99.0.1", "fd00:99::1"
COMMAND_SECONDS = 120
NEEDED = {"dnsmasq": "dnsmasq-base", "tcpdump": "tcpdump", "ip": "iproute2", "nsenter": "util-linux"}


class CannotMakeNetwork(Exception):
    """This machine does not let us; the text says why (tests skip with it)."""


class JudgeNetwork:
    """See the module.  `tap` is the descriptor for QEMU."""

    def __init__(self, folder: Path) -> None:
        missing = [package for program, package in NEEDED.items() if not shutil.which(program)]
        if missing:
            raise CannotMakeNetwork(f"not installed: {' '.join(missing)}")
        self.folder = folder
        self.tap = self._namespace = -1
        self.running: list[subprocess.Popen[bytes]] = []
        failure: list[OSError] = []
        thread = threading.Thread(target=self._make, args=(failure,))
        thread.start()
        thread.join()
        if failure:
            raise CannotMakeNetwork(f"no network namespace with a tap device: {failure[0]}")
        for command in (f"addr add {HOST4}/24 dev {TAP}", f"addr add {HOST6}/64 dev {TAP} nodad",
                        f"link set {TAP} up", "link set lo up"):
            self.run("ip", *command.split())

    def _make(self, failure: list[OSError]) -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), "unshare")
            self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            self.tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(self.tap, TUNSETIFF, struct.pack("16sH22x", TAP.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        except OSError as error:
            failure.append(error)

    def close(self) -> None:
        """Ends every program in it; the namespace goes with the last of them."""
        for process in self.running:
            self.end(process)
        for descriptor in (self.tap, self._namespace):
            if descriptor >= 0:
                os.close(descriptor)

    def run(self, *command: str, check: bool = True) -> str:
        """What a program says there."""
        done = subprocess.run(self._inside(command), capture_output=True, text=True, timeout=COMMAND_SECONDS,
                              check=False)  # fmt: skip
        if check and done.returncode:
            raise CannotMakeNetwork(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout + done.stderr

    def start(self, *command: str, output: str) -> subprocess.Popen[bytes]:
        """Starts a program there that writes into the file `output` of the folder."""
        with (self.folder / output).open("ab") as file:
            process = subprocess.Popen(self._inside(command), stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self.running.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Ends a program that `start` started."""
        process.terminate()
        process.wait(COMMAND_SECONDS)
        self.running = [other for other in self.running if other is not process]

    def dhcp_server(self, addresses: str, *options: str) -> subprocess.Popen[bytes]:
        """dnsmasq as a DHCP server for this range, its log in dnsmasq.log."""
        return self.start(
            "dnsmasq", "--keep-in-foreground", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--no-ping",
            f"--interface={TAP}", "--bind-interfaces", f"--dhcp-range={addresses},255.255.255.0,120",
            f"--dhcp-leasefile={self.folder}/leases", "--dhcp-authoritative", "--user=root", "--pid-file=",
            "--log-dhcp", *options, output="dnsmasq.log",
        )  # fmt: skip

    def capture(self) -> subprocess.Popen[bytes]:
        """tcpdump, with what it sees in capture.txt, of announcements only."""
        process = self.start("tcpdump", "-i", TAP, "-l", "-n", "-v", "arp or (icmp6 and ip6[40] == 136)",
                             output="capture.txt")  # fmt: skip
        self.until(lambda: "listening on" in self.said("capture.txt"), "tcpdump to listen")
        return process

    def said(self, output: str) -> str:
        """What a program has written so far."""
        path = self.folder / output
        return path.read_text(errors="replace") if path.exists() else ""

    @staticmethod
    def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        """Waits for something."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
            time.sleep(0.1)

    def _inside(self, command: tuple[str, ...]) -> list[str]:
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._namespace}", "--", *command]
