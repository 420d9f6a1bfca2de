"""VMs that nobody talks to, told what to run in every way there is.  (The ISO is in test_iso_boot.py.)"""

from __future__ import annotations

import base64
import json
import os
import select
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.agents_code import agents_code
from tests.link_machine import LinkMachine, Plan, machine_plan
from tests.vm.conftest import RUN_SECONDS
from vch.machine.machine import Machine
from vch.qemu import config as qemu
from vch.qemu.channel import READ_SIZE, open_channels
from vch.qemu.config import LINK_PORT, LinkKind
from vch.qemu.process import QemuProcess

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def plan(home: Path, demo_layout: Path) -> Iterator[Plan]:
    """A machine of which only the disks matter."""
    with machine_plan(f"oci:{demo_layout}:demo", LinkKind.VIRTIO_SERIAL) as made:
        yield made


def spec_of(plan: Plan, script: str) -> dict[str, Any]:
    """A spec that runs a script, as plain data."""
    disk = plan.spec.root.layers[0].disk.serial
    layers = [{"disk": {"serial": disk, "partition": layer.disk.partition}} for layer in plan.spec.root.layers]
    return {"id": "told", "root": {"layers": layers}, "network": {"hostname": "told"},
            "process": {"args": ["sh", "-c", script]}}  # fmt: skip


def run(plan: Plan, words: Sequence[str] = (), devices: Sequence[str] = (), *, link: bool = False) -> str:
    """The console of a machine with these words for its kernel and for QEMU, and without a port for the link."""
    config = plan.config._replace(devices=tuple(devices),
                     boot=plan.config.boot._replace(arguments=(*plan.config.boot.arguments, *words)))  # fmt: skip
    with ExitStack() as held:
        ours, theirs = open_channels()
        held.callback(ours.close)
        held.callback(theirs.close)
        command = qemu.command_line(config, theirs.channels, plan.program)
        if not link:
            at = command.index(f"virtserialport,bus=ports.0,chardev=link,name={LINK_PORT}")
            del command[at - 1 : at + 1]
        machine = QemuProcess(command, qemu.inherited(config, theirs.channels))
        held.callback(machine.close)
        theirs.close()
        console, said, deadline = ours.console, b"", time.monotonic() + RUN_SECONDS
        while select.select([console], [], [], max(0.0, deadline - time.monotonic()))[0]:
            data = os.read(console.fileno(), READ_SIZE)
            if not data:
                return said.decode().replace("\r", "")
            said += data
        raise AssertionError(f"it does not end: {said!r}")


def told(plan: Plan, script: str, tmp_path: Path) -> Path:
    """A file with a spec."""
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec_of(plan, script), indent=1))
    return path


def test_fw_cfg(plan: Plan, tmp_path: Path) -> None:
    file = told(plan, "echo by fw_cfg; hostname; exit 3", tmp_path)
    console = run(plan, ["tether.spec=fw_cfg"], ["-fw_cfg", f"name=opt/org.vch/spec,file={file}"], link=True)
    assert "by fw_cfg\ntold\n" in console
    assert "tether: the container ended with exit code 3" in console


def test_without_a_link_and_without_being_told_to_it_looks_around(plan: Plan, tmp_path: Path) -> None:
    file = told(plan, "echo found", tmp_path)
    assert "found\n" in run(plan, [], ["-fw_cfg", f"name=opt/org.vch/spec,file={file}"])


def test_smbios(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "strings"
    file.write_text("vch.spec=" + json.dumps(spec_of(plan, "echo by smbios")))
    strings = f"type=11,value=other,path={file}"
    assert "by smbios\n" in run(plan, ["tether.spec=guestinfo,smbios"], ["-smbios", strings])


def test_guestinfo_by_its_stand_in(plan: Plan, tmp_path: Path) -> None:
    file = told(plan, "echo by guestinfo", tmp_path)
    console = run(plan, ["tether.spec=guestinfo,fw_cfg"], ["-fw_cfg", f"name=opt/guestinfo/vch.spec,file={file}"])
    assert "by guestinfo\n" in console


def test_the_kernel_command_line(plan: Plan) -> None:
    text = base64.urlsafe_b64encode(json.dumps(spec_of(plan, "echo by command line")).encode()).decode()
    assert "by command line\n" in run(plan, [f"tether.spec=smbios,cmdline:{text}"])
    plain = json.dumps(spec_of(plan, "echo$IFS'plain'"), separators=(",", ":"))
    assert "plain\n" in run(plan, [f"tether.spec=cmdline:{plain}"])


def test_a_wrong_key_is_named_with_its_source(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps({**spec_of(plan, "true"), "network": {"hostname": "x", "nameserver": []}}))
    fw_cfg = ["-fw_cfg", f"name=opt/org.vch/spec,file={file}"]
    assert "tether: read spec: fw_cfg opt/org.vch/spec: network.nameserver: unknown key" in run(
        plan, ["tether.spec=fw_cfg,smbios"], fw_cfg)  # fmt: skip


def test_nothing_anywhere(plan: Plan) -> None:
    console = run(plan, ["tether.spec=auto"])
    assert "tether: read spec: spec: is not in fw_cfg, guestinfo, smbios (give it there, or in another of" in console


def test_guestinfo_is_passed_over_where_the_backdoor_knows_no_messages(plan: Plan, tmp_path: Path) -> None:
    """QEMU's vmport answers as VMware does, but only when it is asked for its version."""
    file = told(plan, "echo next", tmp_path)
    devices = ["-machine", "vmport=on", "-fw_cfg", f"name=opt/org.vch/spec,file={file}"]
    assert "next\n" in run(plan, ["tether.spec=guestinfo,fw_cfg"], devices)


def test_the_backdoor_is_found_by_our_own_instructions(home: Path, python_image: str) -> None:
    """The agent's module as a program of the container, under a hypervisor that has a backdoor."""
    script = "from tether.sources import backdoor; print(backdoor.answers(backdoor.knocker()), backdoor.find_rpc())"
    with machine_plan(python_image, LinkKind.VIRTIO_SERIAL) as plan, Machine(
        plan.config._replace(devices=("-machine", "vmport=on")), plan.program
    ) as machine:
        machine.start(plan.spec)
        container = LinkMachine(machine, None)
        with agents_code("") as file:
            container.sh("cat > /code.zip", stdin=file.fileno())
        assert container.sh(f"PYTHONPATH=/code.zip python3 -c '{script}'") == "True None\n"
