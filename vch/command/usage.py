"""The help texts, made from the tables that the parser uses."""

from __future__ import annotations

from collections.abc import Mapping

from vch.options.pflag import Flag
from vch.options.run_options import FLAGS

RUN_EXAMPLES = """\
Examples:
  vch run --rm alpine echo hello
  vch run -it --rm debian:12 bash
  tar c . | vch run -i --rm alpine tar tv
  vch run --rm -p 8080:80 -v site:/usr/share/nginx/html nginx
  vch run --rm -m 1g --cpus 2 -e TOKEN python:3.11 python3 -c 'import os; print(os.environ["TOKEN"])'
  vch run --rm oci:./layout:tag
"""

RUN_NOTES = """\
IMAGE is a registry reference, an image ID, oci:DIR[:TAG] or docker-archive:FILE[:REF].

Exit code: the command's own; 128+n after signal n; 126 if the command cannot be executed, 127 if there is none;
125 if vch itself failed; 137 if the machine was lost.

Settings: ~/.config/vch/config.toml and VCH_* variables, see docs/run.md.
"""


def overview(commands: Mapping[str, str]) -> str:
    """`vch --help`."""
    lines = [f"  {name:<12} {what}" for name, what in commands.items()]
    return "\n".join([
        "Usage:  vch [-D] COMMAND",
        "",
        "Runs container images as virtual machines of their own.",
        "",
        "Commands:",
        *lines,
        "",
        "Run 'vch COMMAND --help' for more on a command.",
    ])  # fmt: skip


def run_help() -> str:
    """`vch run --help`."""
    return "\n".join([
        "Usage:  vch run [OPTIONS] IMAGE [COMMAND] [ARG...]",
        "",
        "Runs a command in a new container VM, in the foreground. Options mean what they mean to docker run.",
        "",
        "Options:",
        *(_line(flag) for flag in FLAGS),
        "",
        RUN_NOTES,
        RUN_EXAMPLES.rstrip(),
    ])  # fmt: skip


def _line(flag: Flag) -> str:
    short = f"-{flag.short}, " if flag.short else "    "
    return f"  {short}--{flag.name} {flag.metavar}".ljust(40) + f" {flag.help}"
