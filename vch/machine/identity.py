"""What no two guests may share, made by the host for each."""

from __future__ import annotations

import os
import time

from tether.spec import Identity

ENTROPY_BYTES = 64  # twice the key of Linux's generator


def new_identity() -> Identity:
    """Made when it is sent, because the clock is read on arrival."""
    return Identity(entropy=os.urandom(ENTROPY_BYTES), clock_ns=time.time_ns())
