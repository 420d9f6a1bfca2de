"""`vch template ls | rm | build`: what machines are cloned from (docs/clone.md)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence

from vch import settings as settings_module
from vch.clone.key import key_of
from vch.clone.store import Listed, Store
from vch.errors import HostError, UsageError
from vch.options import values
from vch.options.pflag import Flag, Given, HelpRequested, Kind, parse, truth
from vch.options.run_options import NETWORKS, RunOptions
from vch.prepare import find_boot
from vch.qemu import accel
from vch.qemu.config import MachineConfig, UserNetwork
from vch.settings import LEAST_MEMORY, MIB, Settings

COMMAND = "vch template"
SHORT_KEY = 12  # digits that tables show; rm takes any beginning of a key that only one has
HELP = """Usage:  vch template ls [--json]
        vch template build [-m SIZE] [--cpus N] [--network user|none]
        vch template rm KEY...
        vch template rm --all

A template is a machine that was frozen while it waited for its container; `vch run` starts copies of it.
The first `vch run` of a kind makes the template of its kind; one that nobody uses for a day is given back.

  ls      list them: size of the machine, memory that the template takes of the host, last use
  build   make the template for machines of this size now (if there is one already, that is all there is to do)
  rm      remove templates; machines that are copies of them run on

Examples:
  vch template build -m 1g --cpus 2
  vch template ls --json
  vch template rm --all"""
_LS = (Flag("json", "", Kind.SWITCH, "", "print JSON"),)
_RM = (Flag("all", "a", Kind.SWITCH, "", "remove all of them"),)
_BUILD = (
    Flag("memory", "m", Kind.VALUE, "SIZE", "memory of the machines"),
    Flag("cpus", "", Kind.VALUE, "N", "their processors"),
    Flag("network", "", Kind.VALUE, "user|none", "whether they have a NIC"),
)


def main(words: Sequence[str]) -> int:
    """The command; its exit code.  Raises OperationError."""
    verbs = {"ls": (_LS, _list), "rm": (_RM, _remove), "build": (_BUILD, _build)}
    if not words or words[0] in ("--help", "-h"):
        print(HELP)
        return 0
    if words[0] not in verbs:
        raise UsageError(f"'{words[0]}' is none of {', '.join(verbs)}", COMMAND)
    flags, command = verbs[words[0]]
    try:
        given, rest = parse(flags, words[1:])
    except HelpRequested:
        print(HELP)
        return 0
    except UsageError as error:
        raise UsageError(error.cause, COMMAND) from error
    return command(given, rest, settings_module.load(os.environ))


def _store(settings: Settings) -> Store:
    if settings.templates is None:
        raise HostError("find templates", "VCH_TEMPLATES", "machines are not cloned: it is off", "unset it")
    return Store(settings.templates)


def _list(given: list[Given], rest: list[str], settings: Settings) -> int:
    _no_words(rest)
    found = _store(settings).list()
    if any(truth(one) for one in given):
        shown = [{**one.facts._asdict(), "held_bytes": one.held_bytes, "used": one.used, "busy": one.busy}
                 for one in found]
        print(json.dumps(shown, indent=2))
        return 0
    from imagebuild.cli.output import print_table

    head = ("KEY", "KERNEL", "MEMORY", "CPUS", "NETWORK", "ACCELERATOR", "ROOT", "TAKES", "USED", "IN USE")
    print_table(head, [_row(one) for one in found])
    return 0


def _row(one: Listed) -> tuple[str, ...]:
    facts = one.facts
    return (
        facts.key[:SHORT_KEY],
        facts.kernel,
        f"{facts.memory_mib} MiB",
        str(facts.cpus),
        "yes" if facts.network else "no",
        facts.accelerator,
        "an image's" if facts.drives else "none",
        f"{one.held_bytes / MIB:.0f} MiB",
        ago(time.time() - one.used),
        "yes" if one.busy else "no",
    )


def ago(seconds: float) -> str:
    """How long ago, in the largest unit."""
    for name, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{max(0.0, seconds):.0f} s ago"


def _remove(given: list[Given], rest: list[str], settings: Settings) -> int:
    store = _store(settings)
    known = [one.facts.key for one in store.list()]
    if any(truth(one) for one in given):
        _no_words(rest)
        store.forget()
        chosen = known
    elif rest:
        chosen = [_chosen(known, word) for word in rest]
    else:
        raise UsageError("give the key of a template, or --all", COMMAND)
    for key in chosen:
        if store.remove(key):
            print(key)
    store.collect()
    return 0


def _chosen(known: list[str], word: str) -> str:
    """The one key that begins with `word`.  Raises HostError."""
    found = [key for key in known if word and key.startswith(word)]
    if len(found) != 1:
        why = "no template has this key" if not found else f"{len(found)} templates begin so"
        raise HostError("remove template", word, why, "see `vch template ls`")
    return found[0]


def _build(given: list[Given], rest: list[str], settings: Settings) -> int:
    _no_words(rest)
    said = {one.flag.name: one.value for one in given}
    try:
        memory = values.parse_size(said["memory"]) if "memory" in said else settings.memory
        cpus = int(values.parse_cpus(said["cpus"])) if "cpus" in said else settings.cpus
    except ValueError as error:
        raise UsageError(str(error), COMMAND) from error
    network = said.get("network", "user")
    if network not in NETWORKS:
        raise UsageError(f"--network: must be one of {', '.join(NETWORKS)}", COMMAND)
    if memory < LEAST_MEMORY or cpus < 1:
        raise UsageError(f"a machine has at least {LEAST_MEMORY // MIB} MiB and one processor", COMMAND)
    store, program = _store(settings), accel.find_qemu(settings.qemu)
    options = RunOptions(image="", memory=memory, cpus=cpus)
    boot, verdict = find_boot(options, settings, program, lambda _line: None)
    config = MachineConfig(
        name="template",
        accelerator=verdict.accelerator,
        memory_mib=memory // MIB,
        cpus=cpus,
        boot=boot,
        network=UserNetwork("") if network == "user" else None,
        link=settings.link,
    )
    key = key_of(config, program)
    there = store.open(key)
    if there is not None:
        there.close()
    else:
        from vch.clone.make import make_template

        if not make_template(config, program, key, store):
            raise HostError("make template", key, "another process is making it", "wait for it")
    print(key)
    return 0


def _no_words(rest: list[str]) -> None:
    if rest:
        raise UsageError(f"accepts no argument, got {len(rest)}", COMMAND)
