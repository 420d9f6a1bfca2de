"""`vch completion bash|zsh|fish`: a script for the shell, made from the parser's table."""

from __future__ import annotations

from collections.abc import Sequence

from vch.errors import UsageError
from vch.options.pflag import Kind
from vch.options.run_options import FLAGS, NETWORKS, PULL_POLICIES

_CHOICES = {"network": NETWORKS, "pull": PULL_POLICIES}
_FISH_RUN = "complete -c vch -n '__fish_seen_subcommand_from run'"
_HELP = """Usage:  vch completion bash|zsh|fish

Prints the completion script.

Examples:
  source <(vch completion bash)
  vch completion fish > ~/.config/fish/completions/vch.fish"""


def main(words: Sequence[str]) -> int:
    """The command."""
    if list(words) in (["--help"], ["-h"]):
        print(_HELP)
        return 0
    makers = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if len(words) != 1 or words[0] not in makers:
        raise UsageError("give one of bash, zsh, fish", "vch completion")
    print(makers[words[0]]())
    return 0


def _commands() -> str:
    from vch.command.cli import COMMANDS

    return " ".join(COMMANDS)


def _bash() -> str:
    options = " ".join(f"--{flag.name}" for flag in FLAGS)
    cases = "\n".join(
        f'    --{name}) COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$word")); return ;;'
        for name, words in _CHOICES.items()
    )
    return f"""_vch() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{_commands()}" -- "$word")); return; fi
  case $before in
{cases}
    --env-file) COMPREPLY=($(compgen -f -- "$word")); return ;;
    template) COMPREPLY=($(compgen -W "ls rm build" -- "$word")); return ;;
    completion) COMPREPLY=($(compgen -W "bash zsh fish" -- "$word")); return ;;
  esac
  case ${{COMP_WORDS[1]}}:$word in
    run:-*) COMPREPLY=($(compgen -W "{options}" -- "$word")) ;;
    doctor:-*) COMPREPLY=($(compgen -W "--json --help" -- "$word")) ;;
  esac
}}
complete -o default -F _vch vch"""


def _zsh() -> str:
    return "#compdef vch\nautoload -U +X bashcompinit && bashcompinit\n" + _bash()


def _fish() -> str:
    lines = [f"complete -c vch -n __fish_use_subcommand -f -a '{_commands()}'"]
    for flag in FLAGS:
        short = f" -s {flag.short}" if flag.short else ""
        takes = "" if flag.kind is Kind.SWITCH else " -x"
        choices = f" -a '{' '.join(_CHOICES[flag.name])}'" if flag.name in _CHOICES else ""
        what = flag.help.replace("'", "\\'")
        lines.append(f"{_FISH_RUN} -l {flag.name}{short}{takes}{choices} -d '{what}'")
    return "\n".join(lines)
