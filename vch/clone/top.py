"""The container's disk in a clone of an image's template: it begins as it was when the template was frozen.

The guest has it mounted already, and in its memory is what was read of it then.
"""

from __future__ import annotations

import errno
import os

from vch.clone.store import Template
from vch.disks import NO_SPACE, format_blank, format_empty
from vch.errors import HostError
from vch.qemu.config import MachineConfig


def take_top(template: Template, config: MachineConfig) -> None:
    """Gives the machine's disk the content that its template left, and others theirs.  Raises HostError."""
    format_blank(config, config.drives[template.facts.drives :])
    if template.top < 0:
        return
    content = _content(template, config)
    try:
        os.ftruncate(content, 0)
        copy_sparse(template.top, content)
    except OSError as error:
        raise HostError("make disk", config.name, error.strerror or str(error), NO_SPACE) from error


def clear_top(template: Template, config: MachineConfig) -> None:
    """The machine is to boot after all: its disk is made anew.  Raises HostError."""
    if template.top >= 0:
        format_empty(_content(template, config), template.facts.top_bytes, config.name)


def copy_sparse(source: int, target: int) -> None:
    """Copies one open file to an empty one, holes as holes.  Raises OSError."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # lseek(2): there is no more data
                return
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        os.lseek(target, at, os.SEEK_SET)
        while at < end:
            at += os.sendfile(target, source, at, end - at)


def _content(template: Template, config: MachineConfig) -> int:
    return config.fd_sets[config.drives[template.facts.drives - 1].content]
