"""What is changed in the kernel's source before pico is built: where a configuration has no word for it.

Each is a text that is replaced by another wherever it stands in a file.  Only what saves memory of every VM belongs
here; how much is said with each, measured in a VM of 128 MB with Linux 6.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """`old` becomes `new` in `files` (paths below the source tree), because of `why`."""

    files: tuple[str, ...]
    old: str
    new: str
    why: str


ENTRY_TEXT = tuple(
    Edit(
        files=("arch/x86/kernel/vmlinux.lds.S",),
        old=f"#define ALIGN_ENTRY_TEXT_{end}\t. = ALIGN(PMD_SIZE);",
        new=f"#define ALIGN_ENTRY_TEXT_{end}\t. = ALIGN(PAGE_SIZE);",
        why="six kilobytes of system call entry have 2 MiB to themselves, and the code before them is filled up to "
        "the next 2 MiB: 2.2 MiB.  With page table isolation the processes' page tables then map more of the kernel's "
        "code, which is no secret where nothing is randomised",
    )
    for end in ("BEGIN", "END")
)
SLAB_FILES = Edit(
    files=("mm/slub.c", "include/linux/slub_def.h"),
    old="CONFIG_SYSFS",
    new="CONFIG_SLUB_SYSFS",
    why="/sys/kernel/slab: 20 files for each of 200 caches, made at every boot and read by nobody",
)
EDITS = (*ENTRY_TEXT, SLAB_FILES)


def apply(tree: Path, edits: Sequence[Edit] = EDITS) -> list[Edit]:
    """Makes the changes, each in all of its files or in none; gives those that this source has no place for."""
    homeless = []
    for edit in edits:
        paths = [tree / name for name in edit.files]
        texts = [path.read_text("utf-8") if path.is_file() else "" for path in paths]
        if not all(edit.old in text for text in texts):
            homeless.append(edit)
            continue
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text.replace(edit.old, edit.new), "utf-8")
    return homeless
