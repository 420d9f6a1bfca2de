"""What holds for all unit tests: none depends on how busy the machine is."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# By default an example may take 200 ms, and finding it a second: true on an idle machine.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
