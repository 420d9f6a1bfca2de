"""Images that insist on being PID 1: systemd and s6, from Debian's packages, as a user runs them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian_image import CannotBuild
from tests.init_image import init_layout
from tests.vm.harness import Container, container
from tests.vm.run_helpers import Terminal

pytestmark = pytest.mark.vm

BOOT_S = 480.0  # systemd starts some thirty programs, on a host that emulates and is busy
STOP_S = 180.0
LOOK_S = 5.0  # a systemctl is as much work as starting a service


@pytest.fixture(scope="module")
def image(home: Path) -> str:
    try:
        return f"oci:{init_layout()}:latest"
    except CannotBuild as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def booted(image: str) -> Iterator[Container]:
    """`vch run IMAGE`, up and running."""
    with container(image) as made:
        deadline = time.monotonic() + BOOT_S
        while (state := made.sh("systemctl is-system-running").out.strip()) not in ("running", "degraded"):
            assert time.monotonic() < deadline, state
            time.sleep(LOOK_S)
        assert state == "running", made.sh("systemctl --failed --no-legend").out
        yield made


class TestSystemd:
    def test_the_system_is_up_and_our_units_ran(self, booted: Container) -> None:
        assert booted.sh("cat /proc/1/comm; systemctl is-active once steady dbus multi-user.target").out.split() == [
            "systemd", *["active"] * 4]
        assert booted.sh("systemctl --failed --no-legend").out == ""

    def test_it_knows_that_it_is_in_a_container_and_which(self, booted: Container) -> None:
        assert booted.sh("systemd-detect-virt --container").out == "container-other\n"
        assert booted.sh("cat /etc/machine-id").out == booted.spec.id[:32] + "\n"

    def test_services_have_cgroups_of_their_own(self, booted: Container) -> None:
        pid = booted.sh("systemctl show --value --property MainPID steady").out.strip()
        assert booted.sh(f"cat /proc/{pid}/cgroup").out == "0::/system.slice/steady.service\n"

    def test_a_service_that_dies_is_started_again(self, booted: Container) -> None:
        script = "systemctl show --value --property MainPID steady"
        before = booted.sh(script).out
        booted.sh("systemctl kill --signal KILL steady")
        booted.until("systemctl show --value --property NRestarts,ActiveState steady | xargs", "1 active", STOP_S)
        assert booted.sh(script).out != before

    def test_run_is_memory(self, booted: Container) -> None:
        assert booted.sh("stat --file-system --format %T /run /run/lock").out == "tmpfs\ntmpfs\n"

    def test_its_exit_code_is_the_containers(self, booted: Container) -> None:
        """The last of this class: it ends the machine."""
        booted.sh("systemctl exit 7")
        assert booted.wait().code == 7


def test_on_a_terminal_it_shows_its_boot_and_halts_when_asked(image: str) -> None:
    user = Terminal("run", "-it", "--stop-timeout", str(int(STOP_S)), image)
    try:
        user.expect(b"our unit ran", BOOT_S)
        user.process.terminate()
        user.expect(b"our unit was stopped", STOP_S)
        assert user.wait(STOP_S) == 0
        assert user.restored
    finally:
        user.close()


def test_s6_supervises_and_ends_in_order(image: str) -> None:
    with container("--pid", "private", image, "s6-svscan", "/etc/s6") as made:
        made.until("cat /starts", "started", BOOT_S)
        assert made.sh("cat /proc/1/comm").out == "s6-svscan\n"
        made.sh("kill -9 $(s6-svstat -o pid /etc/s6/steady)")
        made.until("cat /starts | xargs; s6-svstat -o up /etc/s6/steady", "started started\ntrue", BOOT_S)
        made.machine.stop(STOP_S, "the test is over")
        assert made.wait().code == 0
