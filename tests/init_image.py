"""An image whose programs want to be PID 1: Debian with systemd and s6, and a service of ours for each.

Made and kept as tests/debian_image.py makes and keeps its own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from imagebuild.oci.compose import LayerTar, write_layout
from tests.debian_image import cache_folder, debootstrap, making, pack

PACKAGES = ("systemd", "systemd-sysv", "dbus", "s6")
CONFIG = {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/sbin/init"]}
UNITS = "etc/systemd/system"
# The second line for the console is written while systemd halts: who sees it knows that the services were stopped.
ONCE = b"""[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=echo our unit ran
ExecStop=echo our unit was stopped
StandardOutput=journal+console
"""
STEADY = b"""[Service]
ExecStart=sleep infinity
Restart=always
RestartSec=0
"""
# On a host that emulates and is busy everything takes its time.
PATIENT = b"[Service]\nTimeoutStartSec=infinity\nTimeoutStopSec=infinity\nWatchdogSec=0\n"
S6_RUN = b"#!/bin/sh\necho started >> /starts\nexec sleep 100000\n"


def init_layout() -> Path:
    """The OCI layout (tag "latest"), made when it is not in the cache.  Raises CannotBuild."""
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    layout = cache_folder() / f"debian-init-{key}"
    if (layout / "index.json").exists():
        return layout
    with making(layout) as scratch:
        if scratch is not None:
            tree, fresh = scratch / "tree", scratch / "layout"
            debootstrap(tree, PACKAGES)
            write_layout(fresh, [pack(tree, lambda name: not name.startswith("dev/")), _services()], CONFIG)
            fresh.rename(layout)
    return layout


def _services() -> bytes:
    layer = LayerTar().file(f"{UNITS}/once.service", ONCE).file(f"{UNITS}/steady.service", STEADY)
    layer.file(f"{UNITS}/service.d/patient.conf", PATIENT)
    layer.directory(f"{UNITS}/multi-user.target.wants")
    for name in ("once", "steady"):
        layer.symlink(f"{UNITS}/multi-user.target.wants/{name}.service", f"/{UNITS}/{name}.service")
    layer.file("etc/machine-id", b"").whiteout("var/lib/dbus/machine-id")  # each container is another machine
    return layer.file("etc/s6/steady/run", S6_RUN, 0o755).tar()
