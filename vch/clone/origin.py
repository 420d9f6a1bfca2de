"""What a machine that is about to start is a clone of, if of anything.

A machine that cannot be cloned boots; why, is told to whoever asked for details, and to nobody else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vch.clone.key import fits, key_of
from vch.clone.store import Store, Template
from vch.errors import MachineError, OperationError
from vch.qemu import MachineConfig

_NOT_ITS_FAULT = ("killed by", "allocate memory", "guest memory", "forwarding rule", "did not come up within")


@dataclass(frozen=True)
class Cloning:
    """How machines are cloned: from templates of `store`; one that is missing is made first, if `make` says so."""

    store: Store
    make: bool = True

    def template(self, config: MachineConfig, program: str, tell: Callable[[str], None]) -> Template | None:
        """The open template for this machine, or None: then it boots.  `tell` hears why."""
        if not fits(config):
            tell("it boots: a machine with such a link or such devices cannot be a clone")
            return None
        try:
            key = key_of(config, program)
            found = self.store.open(key)
            if found is None and self.make:
                found = self._made(config, program, key, tell)
        except OSError as error:
            tell(f"it boots: {error.filename or 'template'}: {error.strerror}")
            return None
        if found is not None:
            tell(f"a clone of template {key}")
        return found

    def give_up(self, template: Template, error: MachineError) -> None:
        """A clone of it did not come up.  If the reason is in the template, it is removed, and for a while not made."""
        if not any(words in str(error) for words in _NOT_ITS_FAULT):
            self.store.remove(template.facts.key)
            self.store.failed(template.facts.key)

    def _made(self, config: MachineConfig, program: str, key: str, tell: Callable[[str], None]) -> Template | None:
        if self.store.has_failed(key):
            tell(f"it boots: template {key} could not be made a while ago")
            return None
        from vch.clone.make import make_template  # late: once per kernel, memory and so on

        tell(f"template {key} is made: once for all machines like this one")
        try:
            made = make_template(config, program, key, self.store)
        except OperationError as error:
            self.store.failed(key)
            tell(f"it boots: {error}")
            return None
        if not made:
            tell("it boots: its template is just being made")
        return self.store.open(key) if made else None
