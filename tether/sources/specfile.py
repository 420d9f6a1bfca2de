"""A spec as JSON text, as every source but the link has it.

Imported late: the json module costs 0.1 s of a cold boot without KVM.

The keys are those of tether/spec.py; strings stand for bytes (UTF-8).  What no two VMs may share is not in it: entropy
and time are this VM's own.
"""

import json
import os
import time

from tether.faults import TetherError
from tether.identity import MIN_ENTROPY
from tether.link.errors import SchemaError
from tether.link.record import decode
from tether.spec import Spec

_KEYS = "docs/agent.md says where a spec is looked for, docs/iso.md what the keys are"


def parse_spec(text: bytes, name: str) -> Spec:
    """The spec in `text`; `name` is for messages.  Raises TetherError that names the key."""
    try:
        plain = json.loads(text)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError both are
        raise TetherError(name, f"is not JSON: {error}", hint=_KEYS) from error
    if not isinstance(plain, dict):
        raise TetherError(name, "is not a JSON object", hint=_KEYS)
    if "identity" in plain:
        raise TetherError(f"{name}: identity", "every VM would have the same", hint="leave it out")
    plain["identity"] = {"entropy": os.urandom(MIN_ENTROPY), "clock_ns": time.time_ns()}
    try:
        return decode(Spec, plain)
    except SchemaError as error:
        where = f"{name}: {error.where}" if error.where else name
        raise TetherError(where, error.why, hint=_KEYS) from error
