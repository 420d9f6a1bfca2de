"""An ISO that is a container: the spec that the agent finds on it, and the image's layers beside that.

The spec is JSON of tether/spec.py's schema, without the identity.  What the image and the user say is merged as Docker
merges them, key by key: the user's `process.args` stand in for the image's, and so on.
"""

from __future__ import annotations

import json
import posixpath
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagebuild.errors import MediaError
from imagebuild.media.iso import SPEC_PATH, Content
from imagebuild.oci.imageconfig import RunConfig
from imagebuild.store.image import Image

LAYER_PATH = "vch/layers/{:03}.erofs"
_ID_DIGITS = 12
_CHECK_SECONDS = 60
_MERGED_KEYS = ("process", "network", "root")  # of these the user may give a part
# The agent itself judges the spec, as the VM will, but in a process of its own: imagebuild does not import it.
_CHECK = """
import sys
sys.path.insert(0, sys.argv[1])
from tether.container import Container
from tether.faults import TetherError
from tether.sources.specfile import parse_spec
try:
    Container(parse_spec(sys.stdin.buffer.read(), sys.argv[2]))
except TetherError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""


def appliance_files(image: Image | None, given: Mapping[str, Any]) -> dict[str, Content]:
    """What an ISO gets to be self-contained: path -> content.  Nothing for neither image nor spec.

    Raises MediaError for a spec that the agent would refuse.
    """
    if image is None and not given:
        return {}
    text = json.dumps(merged_spec(image, given), indent=1, sort_keys=True).encode() + b"\n"
    check_spec(text, SPEC_PATH)
    layers = image.layers if image else ()
    return {
        SPEC_PATH: Content(text),
        **{LAYER_PATH.format(number): Content(layer.path, layer.path.name.encode() + layer.diff_id.encode())
           for number, layer in enumerate(layers, 1)},
    }


def merged_spec(image: Image | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The spec: what follows from the image, with what the user gives in its place."""
    spec = _spec_of_image(image) if image else {}
    for key, value in given.items():
        if key in _MERGED_KEYS and isinstance(value, dict) and isinstance(spec.get(key), dict):
            spec[key] = {**spec[key], **value}
        else:
            spec[key] = value
    return spec


def read_given(path: Path) -> dict[str, Any]:
    """The user's spec file.  Raises MediaError."""
    try:
        plain = json.loads(path.read_bytes())
    except OSError as error:
        raise MediaError("read spec", str(path), error.strerror or str(error)) from error
    except ValueError as error:
        raise MediaError("read spec", str(path), f"it is not JSON: {error}", "docs/iso.md has an example") from error
    if not isinstance(plain, dict) or not plain:
        raise MediaError("read spec", str(path), "it is not a JSON object with keys", "docs/iso.md has an example")
    return plain


def check_spec(text: bytes, name: str) -> None:
    """Have the agent read a spec.  Raises MediaError with its sentence."""
    source = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-I", "-c", _CHECK, source, name], input=text, capture_output=True,
                          timeout=_CHECK_SECONDS, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise MediaError("check spec", said[-1] if said else name, "the agent would refuse it",
                         "docs/iso.md describes the keys")


def _spec_of_image(image: Image) -> dict[str, Any]:
    run = image.config.run
    short = image.id.partition(":")[2][:_ID_DIGITS]
    layers = [{"disk": {"file": LAYER_PATH.format(number)}} for number in range(1, 1 + len(image.layers))]
    spec: dict[str, Any] = {
        "id": image.id.partition(":")[2],
        "root": {"layers": layers},
        "network": {"hostname": short},
        "process": _process_of_image(run),
    }
    if run.stop_signal:
        spec["stop_signal"] = _signal_number(run.stop_signal)
    return spec


def _process_of_image(run: RunConfig) -> dict[str, Any]:
    return {
        "args": [*(run.entrypoint or ()), *(run.cmd or ())],
        "env": list(run.env),
        "cwd": posixpath.normpath(posixpath.join("/", run.working_dir)),
        "user": run.user,
    }


def _signal_number(name: str) -> int:
    """"SIGTERM", "TERM" or "15" (image-spec, config.md)."""
    try:
        return int(name) if name.isdigit() else signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"].value
    except KeyError as error:
        raise MediaError("read image config", f"StopSignal {name!r}", "there is no such signal",
                         'give "stop_signal" in the spec file') from error
