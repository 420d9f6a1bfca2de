"""What a machine that is about to start is a clone of, if of anything.

    1. a template of its own size, if somebody has made one
    2. a template of the standard size, if the machine wants more memory: the rest is plugged in when it has woken
    3. a template of its own size, which is made

and of the template of its image that is made of that, once a machine like it is cloned for the second time.

Plugging memory in costs 0.12 s of CPU without KVM, and making a template a boot and 50 MB (docs/clone.md, "Memory").
A machine that cannot be cloned boots; why, is told to whoever asked for details, and to nobody else.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from tether.link.waking import Prepare
from vch.clone.key import fits, key_of, rooted_key, smaller
from vch.clone.store import Store, Template
from vch.errors import HostError, MachineError, OperationError
from vch.qemu.config import MachineConfig

_NOT_ITS_FAULT = ("killed by", "allocate memory", "guest memory", "forwarding rule", "did not come up within")


class Cloning(NamedTuple):
    """How machines are cloned: from templates of `store`; one that is missing is made first, if `make` says so.

    `standard_mib` is the size from which bigger machines are reached; 0: they are not, each size has a template.
    `prepare`: what the spec will ask for and does not depend on the container; with it there are templates of images.
    """

    store: Store
    make: bool = True
    standard_mib: int = 0
    prepare: Prepare | None = None
    eager: bool = False
    """The template of an image is made at once, and not when the image is run again."""

    def template(self, config: MachineConfig, program: str, tell: Callable[[str], None]) -> Template | None:
        """The open template for this machine, which may have less memory, or None: then it boots.  `tell` hears why."""
        if not fits(config):
            tell("it boots: a machine with such a link or such devices cannot be a clone")
            return None
        try:
            key = key_of(config, program)
            found = self.store.open(key)
            if found is None and self.store.has_failed(key):
                tell(f"it boots: template {key} could not be made a while ago, or not be used")
                return None
            standard = smaller(config, self.standard_mib) if self.standard_mib else None
            if found is None and standard is not None:
                key, config = key_of(standard, program), standard
                found = self.store.open(key)
            if found is None and self.make:
                found = self._made(config, program, key, tell)
            if found is not None and self.prepare is not None:
                found = self._with_root(config, program, found, self.prepare, tell)
        except OSError as error:
            tell(f"it boots: {error.filename or 'template'}: {error.strerror}")
            return None
        except HostError as error:
            tell(f"it boots: {error}")
            return None
        if found is not None:
            tell(f"a clone of template {found.facts.key}{', with its root' if found.facts.drives else ''}")
        return found

    def give_up(self, template: Template, error: MachineError) -> None:
        """A clone of it did not come up.  If the reason is in the template, it is removed, and for a while not made."""
        if not any(words in str(error) for words in _NOT_ITS_FAULT):
            self.store.remove(template.facts.key)
            self.store.failed(template.facts.key)

    def give_up_growing(self, config: MachineConfig, program: str) -> None:
        """A clone did not become this machine when the rest of its memory was plugged in: for a while it boots."""
        with suppress(OSError):
            self.store.failed(key_of(config, program))

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

    def _with_root(
        self, config: MachineConfig, program: str, plain: Template, prepare: Prepare, tell: Callable[[str], None]
    ) -> Template:
        """The image's own template instead of the `plain` one, if there is one, or it is worth making now."""
        key = rooted_key(plain.facts.key, config, prepare)
        if key is None:
            return plain
        found = self.store.open(key)
        if found is None and self.make and (self.eager or self.store.want(key)) and not self.store.has_failed(key):
            from vch.clone.grow import grow_template  # late: once per image

            tell(f"the image gets a template of its own, {key}")
            try:
                if grow_template(config, program, key, self.store, prepare=prepare, plain=plain):
                    found = self.store.open(key)
            except OperationError as error:
                self.store.failed(key)
                tell(f"it has no template of its own: {error}")
        if found is not None:
            plain.close()
        return found or plain
