"""`vch run --profile`: collects what the boot chart needs while a container starts, and shows it at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from vch.errors import OperationError

if TYPE_CHECKING:
    from tether.link.messages import Phase, Ready, Started
    from vch.machine.machine import Machine
    from vch.machine.session import Session


class Profile:
    """Called at the points of a run; does next to nothing unless the chart is wanted."""

    def __init__(self, *, wanted: bool, picture: str | None) -> None:
        self._wanted, self._picture = wanted or picture is not None, picture
        self._began = self._machine = time.monotonic()
        self._zero: float | None = None
        self._first_output: float | None = None
        self._phases: list[Phase] = []

    def machine_starts(self) -> None:
        """QEMU is started now."""
        self._machine = time.monotonic()

    def ready(self, message: Ready) -> None:
        """The agent has said that it is up."""
        if not self._wanted:
            return
        from vch.command import bootchart

        self._zero = bootchart.guest_zero(time.monotonic(), message.phases)
        self._phases += message.phases

    def started(self, message: Started) -> None:
        """The primary process runs."""
        self._phases += message.phases

    def over(self, machine: Machine, session: Session) -> None:
        """The process has ended: nothing that is asked now can disturb what is measured."""
        self._first_output = session.first_output
        if not self._wanted:
            return
        from vch.command import bootchart

        asked = time.monotonic()
        try:
            pong = machine.ping()
        except OperationError:  # it is gone already: the estimate from Ready has to do
            return
        self._zero = bootchart.zero_of_pong(asked, time.monotonic(), pong.monotonic_ns)

    def show(self, title: str) -> list[str]:
        """The lines for the user; writes the picture.  Empty if no chart is wanted, or nothing was started."""
        if not self._wanted or self._zero is None:
            return []
        from vch.command import bootchart

        moments = bootchart.Moments(self._began, self._machine, self._zero, self._first_output)
        line = bootchart.spans(moments, self._phases)
        lines = bootchart.table(line).splitlines()
        if self._picture is not None:
            from vch.command.bootchart_svg import svg

            try:
                Path(self._picture).write_text(svg(line, title), encoding="utf-8")
            except OSError as error:
                lines.append(f"write profile: {self._picture}: {error.strerror} (choose another file)")
        return lines
