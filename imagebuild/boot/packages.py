"""Which Debian packages files of this host are from (dpkg-query(1))."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from imagebuild.errors import InitramfsError

DPKG_SECONDS = 60  # it reads a few megabytes


@dataclass(frozen=True, order=True)
class Package:
    """An installed package."""

    name: str
    version: str
    architecture: str
    source: str


def owners(files: Iterable[Path]) -> dict[Path, Package]:
    """File -> its package, without the files that no package has.  Raises InitramfsError where there is no dpkg."""
    asked = sorted(set(files))
    if not asked:
        return {}
    names = {path: spellings(path) for path in asked}
    said = _query(["--search", *(name for several in names.values() for name in several)])
    owner = parse_search(said)
    found = {path: next((owner[name] for name in several if name in owner), "") for path, several in names.items()}
    known = _packages(sorted({name for name in found.values() if name}))
    return {path: known[name] for path, name in found.items() if name in known}


def spellings(path: Path) -> list[str]:
    """The names under which dpkg may know a file: with /usr merged, packages still ship /lib/..."""
    real = os.path.realpath(path)
    names = [str(path), real, real.removeprefix("/usr"), f"/usr{path}"]
    return list(dict.fromkeys(names))


def parse_search(text: str) -> dict[str, str]:
    """File -> package out of `dpkg-query --search`; diversions and several owners are skipped."""
    owner = {}
    for line in text.splitlines():
        package, colon, path = line.partition(": ")
        if colon and " " not in package:
            owner[path] = package
    return owner


def _packages(names: list[str]) -> Mapping[str, Package]:
    if not names:
        return {}
    form = "${binary:Package}\t${Package}\t${Version}\t${Architecture}\t${source:Package}\n"
    rows = [line.split("\t") for line in _query(["--show", f"--showformat={form}", *names]).splitlines()]
    return {key: Package(*rest) for key, *rest in rows}


def _query(words: list[str]) -> str:
    """Runs dpkg-query, which ends with 1 when it does not know some of what it was asked for."""
    command = ["dpkg-query", *words]
    try:
        done = subprocess.run(command, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=False,
                              timeout=DPKG_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InitramfsError("find packages", command[0], str(error), "run it on Debian, or without an SBOM") from error
    if done.returncode not in (0, 1):
        raise InitramfsError("find packages", command[0], done.stderr.strip() or f"it ended with {done.returncode}",
                             "repair dpkg's database, or run it without an SBOM")
    return done.stdout
